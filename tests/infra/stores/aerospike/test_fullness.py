from __future__ import annotations

import pytest

from infra.stores.aerospike.fullness import fullness
from infra.stores.aerospike.store import AerospikeStore
from tests.aerospike_double import (
    AerospikeDouble,
    AerospikeServer,
    aerospike_server,
    double,
    open_aerospike,
)

__all__ = ["aerospike_server", "double"]

SERVER_7 = {
    "stop_writes": "false",
    "data_avail_pct": "62",
    "data_used_pct": "35",
    "storage-engine.stop-writes-avail-pct": "5",
    "storage-engine.stop-writes-used-pct": "70",
}
SERVER_6 = {
    "stop_writes": "false",
    "memory_free_pct": "55",
    "stop-writes-pct": "90",
    "device_available_pct": "43",
    "device_free_pct": "65",
    "storage-engine.min-avail-pct": "5",
    "storage-engine.max-used-pct": "70",
}


@pytest.mark.parametrize(
    ("said", "nearest"),
    [
        (SERVER_7, (0.5, "data_used_pct 35")),
        (SERVER_7 | {"data_avail_pct": "24"}, (0.8, "data_avail_pct 24")),
        (SERVER_7 | {"stop_writes": "true"}, (1.0, "a server takes no more writes")),
        (SERVER_6, (0.6, "device_available_pct 43")),
        (SERVER_6 | {"memory_free_pct": "28"}, (0.8, "memory_free_pct 28")),
        (SERVER_6 | {"device_free_pct": "37"}, (0.9, "device_free_pct 37")),
    ],
)
def test_the_limit_that_is_nearest_counts(said: dict[str, str], nearest: tuple[float, str]) -> None:
    found = fullness(said)
    assert found is not None
    assert found.share == pytest.approx(nearest[0])
    assert found.what.startswith(nearest[1])


def test_a_limit_that_is_switched_off_is_all_there_is() -> None:
    found = fullness({"data_used_pct": "35", "storage-engine.stop-writes-used-pct": "0"})
    assert found is not None
    assert found.share == 0.35


def test_a_server_that_says_nothing_is_not_known() -> None:
    assert fullness({}) is None


def test_the_server_with_the_least_room_counts(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    with AerospikeDouble(indexes=dict(double.data.indexes)) as other:
        double.join(other)
        other.fullness["data_used_pct"] = "60"
        store: AerospikeStore = open_aerospike(aerospike_server)
        room = store.room()
        store.close()
    assert room is not None
    assert room.what.startswith("data_used_pct 60")
