"""The double does to the real client what a server does; so each test also runs against one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import aerospike
import pytest
from aerospike import exception, predicates
from aerospike_helpers import expressions
from aerospike_helpers.batch.records import BatchRecords, Write
from aerospike_helpers.operations import operations

from tests.aerospike_double import (
    AerospikeDouble,
    AerospikeServer,
    aerospike_server,
    double,
)

__all__ = ["aerospike_server", "double"]

Key = tuple[str, str, bytearray]


@pytest.fixture
def client(aerospike_server: AerospikeServer) -> Iterator[aerospike.Client]:
    config = {"hosts": [(aerospike_server.host, aerospike_server.port)]}
    client = aerospike.client(config).connect()
    yield client
    client.close()


@pytest.fixture
def key(aerospike_server: AerospikeServer) -> Key:
    return aerospike_server.namespace, "sequence", bytearray(b"ann")


def write_one(client: aerospike.Client, key: Key, bins: dict[str, Any], **policy: Any) -> int:
    """The result code of one write in a batch."""
    generation = policy.pop("generation", None)
    meta = None if generation is None else {"gen": generation}
    ops = [operations.write(name, value) for name, value in bins.items()]
    batch = BatchRecords([Write(key, ops, meta=meta, policy=policy or None)])
    client.batch_write(batch)
    return int(batch.batch_records[0].result)


def bins_of(client: aerospike.Client, key: Key) -> dict[str, Any]:
    bins: dict[str, Any] = client.get(key)[2]
    return bins


def test_bins_come_back_with_their_types(client: aerospike.Client, key: Key) -> None:
    bins = {"number": -(1 << 63), "bytes": b"\x00\xff", "text": "Grüße"}
    client.put(key, bins)
    assert bins_of(client, key) == bins


def test_a_record_that_is_not_there_is_code_2(client: aerospike.Client, key: Key) -> None:
    with pytest.raises(exception.RecordNotFound):
        client.get(key)
    assert client.batch_read([key], ["n"]).batch_records[0].result == 2


def test_a_batch_answers_in_the_order_of_its_keys(
    client: aerospike.Client, aerospike_server: AerospikeServer
) -> None:
    namespace = aerospike_server.namespace
    keys = [(namespace, "sequence", bytearray(str(i).encode())) for i in range(300)]
    for i in range(0, 300, 2):
        client.put(keys[i], {"n": i})
    answers = client.batch_read(keys, ["n"]).batch_records
    assert [a.record[2]["n"] if a.result == 0 else None for a in answers] == [
        i if i % 2 == 0 else None for i in range(300)
    ]


def test_a_batch_reads_only_the_bins_asked_for(client: aerospike.Client, key: Key) -> None:
    client.put(key, {"a": 1, "b": 2})
    answer = client.batch_read([key], ["b", "absent"]).batch_records[0]
    assert answer.record[2] == {"b": 2}


def test_creating_what_exists_is_code_5(client: aerospike.Client, key: Key) -> None:
    create = {"exists": aerospike.POLICY_EXISTS_CREATE}
    assert write_one(client, key, {"n": 1}, **create) == 0
    assert write_one(client, key, {"n": 2}, **create) == 5
    assert bins_of(client, key) == {"n": 1}


def test_updating_what_does_not_exist_is_code_2(client: aerospike.Client, key: Key) -> None:
    assert write_one(client, key, {"n": 1}, exists=aerospike.POLICY_EXISTS_UPDATE) == 2
    assert write_one(client, key, {"n": 1}, exists=aerospike.POLICY_EXISTS_REPLACE) == 2


def test_another_generation_is_code_3(client: aerospike.Client, key: Key) -> None:
    equal = {"gen": aerospike.POLICY_GEN_EQ}
    client.put(key, {"n": 1})
    assert write_one(client, key, {"n": 2}, generation=1, **equal) == 0
    assert write_one(client, key, {"n": 3}, generation=1, **equal) == 3
    assert bins_of(client, key) == {"n": 2}


def test_a_write_tells_the_generation_it_made(client: aerospike.Client, key: Key) -> None:
    client.put(key, {"n": 1})
    batch = BatchRecords([Write(key, [operations.write("n", 2)])])
    client.batch_write(batch)
    assert batch.batch_records[0].record[1]["gen"] == 2


def test_replacing_drops_the_other_bins(client: aerospike.Client, key: Key) -> None:
    client.put(key, {"a": 1, "b": 2})
    assert write_one(client, key, {"b": 3}, exists=aerospike.POLICY_EXISTS_REPLACE) == 0
    assert bins_of(client, key) == {"b": 3}


def test_a_filter_that_does_not_hold_is_code_27(client: aerospike.Client, key: Key) -> None:
    below = expressions.LT(expressions.IntBin("n"), 5).compile()
    client.put(key, {"n": 4})
    assert write_one(client, key, {"n": 9}, expressions=below) == 0
    assert write_one(client, key, {"n": 10}, expressions=below) == 27
    assert bins_of(client, key) == {"n": 9}


def test_a_filter_over_an_absent_bin_does_not_hold(client: aerospike.Client, key: Key) -> None:
    below = expressions.LT(expressions.IntBin("absent"), 5).compile()
    client.put(key, {"n": 4})
    assert write_one(client, key, {"n": 9}, expressions=below) == 27


def test_a_filter_is_not_asked_where_the_record_is_new(client: aerospike.Client, key: Key) -> None:
    never = expressions.LT(expressions.IntBin("n"), -1).compile()
    assert write_one(client, key, {"n": 9}, expressions=never) == 0


def test_one_failed_row_does_not_end_a_batch(client: aerospike.Client, key: Key) -> None:
    client.put(key, {"n": 1})
    other = (*key[:2], bytearray(b"zoe"))
    create = {"exists": aerospike.POLICY_EXISTS_CREATE}
    batch = BatchRecords(
        [Write(k, [operations.write("n", 2)], policy=create) for k in (key, other)]
    )
    client.batch_write(batch)
    assert [row.result for row in batch.batch_records] == [5, 0]


def test_a_removed_record_is_gone(client: aerospike.Client, key: Key) -> None:
    client.put(key, {"n": 1})
    client.remove(key)
    with pytest.raises(exception.RecordNotFound):
        client.remove(key)


def test_a_record_over_a_mebibyte_is_code_13(client: aerospike.Client, key: Key) -> None:
    with pytest.raises(exception.RecordTooBig):
        client.put(key, {"n": bytes(9 << 20)})


def test_a_record_over_the_namespace_s_limit_is_code_13(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    double.data.max_record = 128 << 10
    client.put(key, {"n": bytes(127 << 10)})
    with pytest.raises(exception.RecordTooBig):
        client.put(key, {"n": bytes(129 << 10)})


def test_a_namespace_s_configuration_tells_its_limit(
    client: aerospike.Client, aerospike_server: AerospikeServer
) -> None:
    command = f"get-config:context=namespace;id={aerospike_server.namespace}"
    answer = client.info_random_node(command)
    assert answer.startswith(f"{command}\t")
    assert "max-record-size=1048576" in answer.strip().partition("\t")[2].split(";")


def test_statistics_tell_how_long_a_server_is_up(client: aerospike.Client) -> None:
    ((error, answer),) = client.info_all("statistics").values()
    assert error is None
    assert re.search(r"[\t;]uptime=\d+[;\n]", answer)


def test_a_namespace_that_is_not_there_is_code_20(client: aerospike.Client) -> None:
    with pytest.raises(exception.AerospikeError) as caught:
        client.get(("nowhere", "sequence", "ann"))
    assert caught.value.code == 20


def test_a_scan_finds_the_records_of_its_set(client: aerospike.Client, key: Key) -> None:
    for i in range(20):
        client.put((*key[:2], bytearray(str(i).encode())), {"n": i})
    client.put((key[0], "segment", bytearray(b"0")), {"n": 99})
    found = client.query(key[0], "sequence").results()
    assert sorted(bins["n"] for _, _, bins in found) == list(range(20))


def test_a_range_of_an_index_finds_its_records(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    for i in range(20):
        client.put((*key[:2], bytearray(str(i).encode())), {"due": i, "n": i, "m": i})
    query = client.query(key[0], "sequence")
    query.select("n")
    query.where(predicates.between("due", 5, 8))
    assert sorted(bins["n"] for _, _, bins in query.results()) == [5, 6, 7, 8]
    assert all(set(bins) == {"n"} for _, _, bins in query.results())


def test_a_page_of_an_index_says_whether_it_was_all(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    for i in range(20):
        client.put((*key[:2], bytearray(str(i).encode())), {"due": i})
    sizes = []
    for page in (7, 30):
        query = client.query(key[0], "sequence")
        query.where(predicates.between("due", 0, 100))
        query.max_records = page
        query.paginate()
        sizes.append((len(query.results()), query.is_done()))
    assert sizes == [(7, False), (20, True)]


def test_a_query_without_its_index_is_code_201(client: aerospike.Client, key: Key) -> None:
    query = client.query(key[0], "sequence")
    query.where(predicates.between("unindexed", 0, 100))
    with pytest.raises(exception.IndexNotFound):
        query.results()


def test_a_query_while_its_index_is_built_is_code_203(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    client.put(key, {"due": 7})
    double.builds = True
    double.drop_index("sequence-due")
    client.info_random_node(
        "sindex-create:namespace=test;set=sequence;indexname=sequence-due;bin=due;type=numeric"
    )
    query = client.query(*key[:2])
    query.where(predicates.between("due", 0, 100))
    with pytest.raises(exception.AerospikeError) as caught:
        query.results()
    assert caught.value.code == 203
    double.finish_indexes()
    assert [bins for _, _, bins in query.results()] == [{"due": 7}]


def test_a_killed_server_loses_what_it_did_not_flush(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    other = (key[0], "segment", key[2])
    for number in (1, 2):
        client.put(key, {"n": number})
        client.put(other, {"n": number})
        if number == 1:
            double.data.flush()
    double.kill("segment")
    double.come_back()
    assert (bins_of(client, key), bins_of(client, other)) == ({"n": 2}, {"n": 1})


def test_a_record_expires_after_its_ttl(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    client.put(key, {"n": 1}, policy={"ttl": 10})
    double.advance(9)
    assert bins_of(client, key) == {"n": 1}
    double.advance(2)
    with pytest.raises(exception.RecordNotFound):
        client.get(key)


def test_an_update_without_a_ttl_takes_the_records_own_away(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    client.put(key, {"n": 1}, policy={"ttl": 10})
    client.put(key, {"n": 2})
    double.advance(1000)
    assert bins_of(client, key) == {"n": 2}


def test_an_update_can_keep_the_ttl(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    client.put(key, {"n": 1}, policy={"ttl": 10})
    double.advance(5)
    assert write_one(client, key, {"n": 2}, ttl=aerospike.TTL_DONT_UPDATE) == 0
    double.advance(6)
    with pytest.raises(exception.RecordNotFound):
        client.get(key)


def test_a_touch_gives_a_new_ttl(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    client.put(key, {"n": 1}, policy={"ttl": 10})
    touch = BatchRecords([Write(key, [operations.touch()], policy={"ttl": 100})])
    client.batch_write(touch)
    double.advance(50)
    assert bins_of(client, key) == {"n": 1}


def test_a_ttl_is_forbidden_where_nothing_removes_expired_records(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    double.data.nsup_period = 0
    with pytest.raises(exception.ForbiddenError):
        client.put(key, {"n": 1}, policy={"ttl": 10})


def test_records_are_still_there_when_the_server_comes_back(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    client.put(key, {"n": 1})
    double.go_away()
    with pytest.raises(exception.AerospikeError):
        client.get(key)
    double.come_back()
    assert bins_of(client, key) == {"n": 1}


def test_a_fault_answers_instead_of_the_server(
    client: aerospike.Client, key: Key, double: AerospikeDouble
) -> None:
    double.fault = lambda request: 18 if request.writes else None
    with pytest.raises(exception.DeviceOverload):
        client.put(key, {"n": 1})
    double.fault = None
    with pytest.raises(exception.RecordNotFound):
        client.get(key)
