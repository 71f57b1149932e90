"""A double of an Aerospike server at the level of its socket, for the real client to talk to."""

from .fixtures import AerospikeServer, aerospike_server, double, open_aerospike
from .server import AerospikeDouble, refuse_writes

__all__ = [
    "AerospikeDouble",
    "AerospikeServer",
    "aerospike_server",
    "double",
    "open_aerospike",
    "refuse_writes",
]
