"""A double of an Aerospike server at the level of its socket, for the real client to talk to."""

from .fixtures import INDEXES, AerospikeServer, aerospike_server, double, open_aerospike
from .gate import Gate
from .server import AerospikeDouble, refuse_writes

__all__ = [
    "INDEXES",
    "AerospikeDouble",
    "AerospikeServer",
    "Gate",
    "aerospike_server",
    "double",
    "open_aerospike",
    "refuse_writes",
]
