"""What a store takes, measured on few events."""

from __future__ import annotations

import pytest

from lifelong.bench.store_load import Cell, cells, measure
from tests.aerospike_double import AerospikeServer, aerospike_server

__all__ = ["aerospike_server"]


@pytest.mark.parametrize("store", ["memory", "lmdb"])
def test_a_store_is_measured_in_all_that_is_asked_of_it(store: str) -> None:
    taken = measure(Cell(store, 100, "light", events=2_000, interests=50, reads=50))

    assert taken.events_per_second > 0
    assert taken.interests_per_second > 0
    assert 0 < taken.read_p50_ms <= taken.read_p99_ms
    if store == "lmdb":
        assert taken.bytes_written_per_event > 25
        assert taken.bytes_kept_per_user > 2_000 / 100 * 25


def test_aerospike_is_measured_where_a_server_is_named(
    aerospike_server: AerospikeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEROSPIKE_HOST", aerospike_server.host)
    monkeypatch.setenv("AEROSPIKE_PORT", str(aerospike_server.port))
    monkeypatch.setenv("AEROSPIKE_NAMESPACE", aerospike_server.namespace)

    assert {cell.store for cell in cells(quick=True)} == {"memory", "lmdb", "aerospike"}
    taken = measure(Cell("aerospike", 100, "light", events=2_000, interests=50, reads=50))

    assert taken.events_per_second > 0
    assert taken.interests_per_second > 0
    assert taken.bytes_kept_per_user == 0  # no file


def test_both_kinds_of_users_are_measured_in_every_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AEROSPIKE_HOST", raising=False)

    assert {(cell.store, cell.load) for cell in cells(quick=True)} == {
        (store, load) for store in ("memory", "lmdb") for load in ("uniform", "light")
    }
    assert max(cell.users for cell in cells(quick=False)) == 1_000_000
