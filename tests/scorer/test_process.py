"""One serving process; each test starts one, so there are few and they test much."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import lmdb
import pytest

from infra.errors import BundleCorrupt, BundleMissing, StoreMismatch
from infra.settings import BundleSettings, Settings, StoreSettings
from infra.stores import lmdb_place
from scorer.client import RankClient
from scorer.server import run_scorer
from tests.aerospike_double import AerospikeDouble, AerospikeServer, aerospike_server, double
from tests.scorer.conftest import add_behavior
from tests.scorer.running import free_port, get, running, until, until_ready, until_refused

__all__ = ["aerospike_server", "double"]


def test_a_scorer_answers_and_finishes_what_is_under_way_at_sigterm(settings: Settings) -> None:
    with running(settings) as process:
        until_ready(settings)
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            assert client.rank("u", ["item-1", "item-2"]).history == "sequence"

        body = b'{"user": "u", "candidates": ["item-1"]}'
        late = socket.create_connection(("127.0.0.1", settings.scorer.port), timeout=10)
        with late:
            late.sendall(
                b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body[:10])
            )
            time.sleep(0.2)  # for the first half to have arrived
            process.send_signal(signal.SIGTERM)
            until_refused(settings)
            late.sendall(body[10:])
            assert late.recv(65_536).startswith(b"HTTP/1.1 200")
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in said


def test_a_store_that_is_away_at_the_start_is_waited_for(settings: Settings) -> None:
    away = StoreSettings(url=f"aerospike://127.0.0.1:{free_port()}/lifelong")
    with running(settings.model_copy(update={"store": away})) as process:
        until(lambda: "the store does not answer" in get(settings, "/v2/health/ready")[1])
        assert get(settings, "/v2/health/ready")[0] == 503
        assert get(settings, "/v2/health/live")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in said


def test_a_store_that_nobody_has_made_yet_is_waited_for(settings: Settings, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    settings = settings.model_copy(update={"store": StoreSettings(url=f"lmdb://{absent}")})
    with running(settings) as process:
        until(lambda: "the store cannot be reached" in get(settings, "/v2/health/ready")[1])
        status, told = get(settings, "/v2/health/ready")
        assert status == 503
        assert str(absent) not in told  # the log says where
        assert not absent.exists()

        add_behavior(settings, "u")  # as a worker would, which makes it
        until_ready(settings)
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            assert client.rank("u", ["item-1", "item-2"]).history == "sequence"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in said
        assert f"there is no store at {absent}" in said


def test_a_store_that_is_made_anew_under_a_scorer_is_read_without_a_restart(
    settings: Settings,
) -> None:
    path, _, _ = lmdb_place(settings.store)
    with running(settings):
        until_ready(settings)
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            shutil.rmtree(path)
            until(lambda: "the store cannot be reached" in get(settings, "/v2/health/ready")[1])
            assert client.rank("u", ["item-1"]).degraded

            add_behavior(settings, "v")  # as a worker would, which makes it
            until(lambda: client.rank("v", ["item-1"]).history == "sequence")
            assert client.rank("u", ["item-1"]).history == "none"


def test_a_server_that_is_slow_degrades_rankings_after_the_scorer_s_timeout(
    settings: Settings, aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    scorer = settings.scorer.model_copy(update={"store_timeout_s": 0.3})
    store = StoreSettings(url=aerospike_server.url)
    settings = settings.model_copy(update={"store": store, "scorer": scorer})
    add_behavior(settings, "u")
    with running(settings) as process:
        until_ready(settings)
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            until(lambda: client.rank("u", ["item-1"]).history == "sequence")
            double.delay_s = 20
            assert client.rank("u", ["item-1"]).degraded
            double.delay_s = 0
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert "did not answer within 0.3 s" in said


def test_a_store_that_is_another_one_ends_the_scorer(settings: Settings) -> None:
    other = settings.store.model_copy(update={"id": "0" * 32})
    with pytest.raises(StoreMismatch, match=r"store\.id"):
        run_scorer(settings.model_copy(update={"store": other}))


def test_a_damaged_record_is_counted_and_costs_nobody_else_anything(settings: Settings) -> None:
    add_behavior(settings, "v")
    damage_head(settings, "u")
    with running(settings):
        until_ready(settings)
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            assert client.rank("u", ["item-1"]).history == "none"
            assert client.rank("v", ["item-1"]).history == "sequence"
        figure = 'lifelong_scorer_store_damage_total{kind="head"} 1.0'
        until(lambda: figure in get(settings, "/metrics")[1])


def test_rankings_are_sampled_and_the_scorer_ends_all_the_same(settings: Settings) -> None:
    scorer = settings.scorer.model_copy(update={"sampled": 1.0})
    settings = settings.model_copy(update={"scorer": scorer})
    with running(settings) as process:
        until_ready(settings)
        with RankClient(f"http://127.0.0.1:{settings.scorer.port}") as client:
            client.rank("u", ["item-1", "item-2"])
        figure = 'lifelong_scorer_samples_total{outcome="measured"} 1.0'
        until(lambda: figure in get(settings, "/metrics")[1])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


def damage_head(settings: Settings, user: str) -> None:
    """Let a disk have forgotten some bytes of a user's head."""
    path, _, _ = lmdb_place(settings.store)
    with lmdb.open(str(path), max_dbs=16) as environment:
        heads = environment.open_db(b"heads")
        with environment.begin(heads, write=True) as transaction:
            head = transaction.get(user.encode())
            assert head is not None
            transaction.put(user.encode(), head[:20] + bytes(4) + head[24:-1])


def test_a_missing_bundle_ends_the_scorer(settings: Settings) -> None:
    nowhere = BundleSettings(path=Path("/nowhere"))
    with pytest.raises(BundleMissing, match="/nowhere"):
        run_scorer(settings.model_copy(update={"bundle": nowhere}))


def test_a_damaged_bundle_ends_the_scorer(settings: Settings) -> None:
    assert settings.bundle.path is not None
    (settings.bundle.path / "scorer.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleCorrupt, match=r"scorer\.onnx"):
        run_scorer(settings)


def test_signal_handlers_are_put_back(settings: Settings) -> None:
    before = signal.getsignal(signal.SIGTERM)
    nowhere = BundleSettings(path=Path("/nowhere"))
    with pytest.raises(BundleMissing):
        run_scorer(settings.model_copy(update={"bundle": nowhere}))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not [thread for thread in threading.enumerate() if thread.name == "loading"]
