"""Whatever a client speaks, it gets the same, and fails alike."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from msgspec.structs import replace

from infra.behaviors import item_key
from infra.errors import RequestError
from scorer.client import Outcome, Retries, ScorerError, ScorerUnavailable, Tls
from scorer.grpc import open_inference_pb2 as pb
from scorer.messages import AsOf, OutcomesAnswer, RankAnswer
from tests.certificates import Authority
from tests.scorer.client.serving import (
    KINDS,
    PROTOCOLS,
    Blocking,
    scripted_grpc,
    serving,
    serving_grpc,
)
from tests.scorer.conftest import World, app_of, ask_callers
from tests.scorer.http.serving import serving as serving_http

CANDIDATES = [*(f"item-{i}" for i in range(1, 31)), "new", "item-1", "new"]
NOW_MS = 1_700_000_000_000

ALL = pytest.mark.parametrize("protocol", PROTOCOLS)
BOTH = pytest.mark.parametrize("kind", KINDS)
TENSORS = pytest.mark.parametrize("protocol", PROTOCOLS[1:])


def over(protocol: str) -> dict[str, Any]:
    return {} if protocol == "grpc" else {"protocol": protocol}


@BOTH
@ALL
def test_rankings_are_the_same(kind: Any, protocol: str, world: World) -> None:
    """Those of the ranker, as /v1/rank answers them."""
    with serving(world, protocol) as url, kind(url, **over(protocol)) as client:
        ranking: RankAnswer = client.rank("u", CANDIDATES, 5, NOW_MS, "last")
        whole = client.rank("u", CANDIDATES, time_ms=NOW_MS)
        stranger = client.rank("stranger", CANDIDATES)
    expected = world.ranker.rank("u", CANDIDATES, NOW_MS)
    order = np.argsort(-expected.ctrs, kind="stable")
    assert [line.item for line in whole.items] == [CANDIDATES[place] for place in order]
    assert [line.ctr for line in whole.items] == pytest.approx(expected.ctrs[order], abs=1e-7)
    known = [place for place in order if CANDIDATES[place] != "new"]
    assert [line.item for line in ranking.items] == [CANDIDATES[place] for place in known[:5]]
    assert ranking.unknown_items == ["new"]
    assert (ranking.history, ranking.user, ranking.newer) == ("interests", "u", 0)
    assert ranking.as_of == AsOf(NOW_MS - 10_000_000, 30)
    assert (ranking.model, ranking.version) == ("tiny", world.bundle.version)
    assert stranger.history == "none"
    assert not stranger.as_of


@BOTH
def test_what_became_of_a_ranking_is_told(kind: Any, world: World) -> None:
    with serving(world, "json") as url, kind(url) as client:
        ranking = client.rank("u", CANDIDATES, 3)
        outcomes = [Outcome(line.ctr, line is ranking.items[1]) for line in ranking.items]
        told = client.tell(outcomes, ranking.version)
        with pytest.raises(RequestError, match="length >= 1") as refused:
            client.tell([])
    assert told == OutcomesAnswer(3, world.bundle.version)
    assert refused.value.field == "outcomes"


@ALL
def test_scores_come_in_the_order_of_the_candidates(protocol: str, world: World) -> None:
    with serving(world, protocol) as url, Blocking(url, **over(protocol)) as client:
        scores = client.score(["u"], [CANDIDATES], NOW_MS)
    expected = world.ranker.rank("u", CANDIDATES, NOW_MS)
    np.testing.assert_allclose(scores.ctrs, [expected.ctrs], atol=1e-7)
    np.testing.assert_array_equal(scores.unknown, [expected.unknown])
    assert scores.history == "interests"


@BOTH
@TENSORS
def test_several_users_are_scored_by_keys(kind: Any, protocol: str, world: World) -> None:
    rows = [["item-1", "item-2", "new"], ["item-3", "item-1", "item-4"]]
    keys = np.array([[item_key(item) for item in row] for row in rows], np.uint64)
    times_ms = [NOW_MS, NOW_MS + 1000]
    with serving(world, protocol) as url, kind(url, **over(protocol)) as client:
        by_ids = client.score(["u", "é"], rows, times_ms)
        by_keys = client.score(["u", "é"], keys, times_ms)
    expected = [
        world.ranker.rank(*one).ctrs for one in zip(["u", "é"], rows, times_ms, strict=True)
    ]
    np.testing.assert_array_equal(by_keys.ctrs, expected)
    np.testing.assert_array_equal(by_ids.ctrs, expected)
    assert by_keys.unknown.tolist() == [[False, False, True], [False, False, False]]
    assert by_keys.history is None


@ALL
def test_what_a_protocol_cannot_say_is_one_line(protocol: str) -> None:
    keys = np.zeros((1, 2), np.uint64)
    url = "grpc://h" if protocol == "grpc" else "http://h"
    with Blocking(url, model="m", **over(protocol)) as client:
        if protocol == "json":
            beyond: list[Any] = [(["a"], keys), (["a", "b"], [["x"], ["y"]])]
            for users, candidates in beyond:
                with pytest.raises(RequestError, match='go with protocol "binary" or "grpc"'):
                    client.score(users, candidates)
        else:
            with pytest.raises(RequestError, match='explain goes with protocol "json"'):
                client.rank("u", ["a"], explain=True)
            with pytest.raises(RequestError, match='outcomes go with protocol "json"'):
                client.tell([Outcome(0.5, positive=True)])
        malformed: list[Any] = [
            ("abc", [["x"]]),
            (["a"], [["x"], ["y"]]),
            (["a", "b"], [["x"], ["y", "z"]]),
            (["a"], ["x"]),
            (["a"], np.zeros(2, np.uint64)),
            (["a"], np.zeros((1, 2), np.int32)),
        ]
        for users, candidates in malformed:
            with pytest.raises(RequestError, match=r"expected|as long|rows for|no array"):
                client.score(users, candidates)
        with pytest.raises(RequestError, match="Unicode"):
            client.rank("u", ["\ud800"])


@BOTH
@ALL
def test_what_a_request_did_wrong_names_its_field(kind: Any, protocol: str, world: World) -> None:
    cases: list[tuple[Any, Any, str, str]] = [
        (("u", []), {}, "candidates", "is empty"),
        (("u", ["a", "x" * 257]), {}, "candidates[1]", r"257|256"),
        (("u", ["a"]), {"time_ms": -1}, "time", r"-1|>= 0"),
        (("u", ["new", "item-1"]), {"unknown_items": "refuse"}, "candidates", "does not know"),
        (("u", ["item-1"]), {"top_k": 0}, "top_k", "1"),
    ]
    with serving(world, protocol) as url, kind(url, **over(protocol)) as client:
        for arguments, more, field, said in cases:
            with pytest.raises(RequestError, match=said) as refused:
                client.rank(*arguments, **more)
            assert refused.value.field.split("[0]")[0] == field


@ALL
def test_a_client_shows_its_key(protocol: str, world: World, tmp_path: Path) -> None:
    ask_callers(world, tmp_path)
    with serving(world, protocol) as url:
        with Blocking(url, key="key of shop", **over(protocol)) as client:
            assert client.rank("u", ["item-1"]).items
        with (
            Blocking(url, **over(protocol)) as client,
            pytest.raises(RequestError, match="is missing"),
        ):
            client.rank("u", ["item-1"])


@BOTH
@ALL
def test_a_strict_scorer_without_its_store_is_unavailable(
    kind: Any, protocol: str, strict_world: World
) -> None:
    strict_world.store.away = True
    with (
        serving(strict_world, protocol) as url,
        kind(url, **over(protocol)) as client,
        pytest.raises(ScorerUnavailable, match="cannot be reached") as unavailable,
    ):
        client.rank("u", ["a"])
    assert unavailable.value.retry_after_s == 1


@BOTH
@ALL
def test_a_failure_inside_the_scorer_is_its_own(kind: Any, protocol: str, world: World) -> None:
    world.ranker._system = None  # type: ignore[assignment]
    with (
        serving(world, protocol) as url,
        kind(url, **over(protocol)) as client,
        pytest.raises(ScorerError, match="failed inside the scorer") as failed,
    ):
        client.rank("u", ["item-1"])
    assert not isinstance(failed.value, ScorerUnavailable)


@pytest.mark.parametrize("protocol", PROTOCOLS[:2])
def test_one_connection_is_enough(protocol: str, world: World) -> None:
    with (
        serving_http(app_of(world)) as served,
        Blocking(f"http://127.0.0.1:{served.port}", **over(protocol)) as client,
    ):
        for _ in range(5):
            client.rank("u", ["item-1"])
        assert served.connections == 1


@ALL
def test_a_model_of_another_name_is_found_again(protocol: str, world: World) -> None:
    """As after a bundle was exchanged; one that was asked for by name is not there."""
    with serving(world, protocol) as url, Blocking(url, **over(protocol)) as client:
        assert client.rank("u", ["item-1"]).model == "tiny"
        bundle = world.ranker.bundle
        object.__setattr__(bundle, "manifest", replace(bundle.manifest, name="other"))
        try:
            assert client.rank("u", ["item-1"]).model == "other"
            if protocol != "json":
                with (
                    Blocking(url, model="tiny", **over(protocol)) as pinned,
                    pytest.raises(RequestError, match="'tiny' is not served here; other is"),
                ):
                    pinned.rank("u", ["item-1"])
        finally:
            object.__setattr__(bundle, "manifest", replace(bundle.manifest, name="tiny"))


ANSWER = pb.ModelInferResponse(
    model_name="m",
    model_version="v",
    outputs=[{"name": "ctr"}, {"name": "unknown"}],
    raw_output_contents=[np.float32(0.5).tobytes(), b"\0"],
).SerializeToString()
BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "request came while more was to be ranked", "100")


@BOTH
def test_over_grpc_a_busy_scorer_is_asked_again_with_the_time_that_is_left(kind: Any) -> None:
    late = (grpc.StatusCode.DEADLINE_EXCEEDED, "request was not scored within 2 s", "0")
    with scripted_grpc(BUSY, late, ANSWER, BUSY, ANSWER) as (url, calls):
        with kind(url, timeout_s=1, retries=Retries(), model="m") as client:
            assert client.rank("u", ["a"]).items[0].ctr == 0.5
        with (
            kind(url, model="m") as client,
            pytest.raises(ScorerUnavailable, match="more was to be ranked") as busy,
        ):
            client.rank("u", ["a"])
    assert busy.value.retry_after_s == 0.1
    left = [seconds for _, seconds in calls[:3]]
    assert 0 < left[1] < left[0] - 0.05
    assert left[0] < 1.01
    assert len({peer for peer, _ in calls[:3]}) == 1  # one connection for all


@BOTH
def test_over_grpc_what_is_no_ranking_is_an_error_of_its_kind(kind: Any) -> None:
    codes = grpc.StatusCode
    cases: list[tuple[Any, type[Exception], str]] = [
        (b"\xff", ScorerError, "no ranking"),
        (b"", ScorerError, "'ctr' is missing"),
        ((codes.INTERNAL, "oops", "-"), ScorerError, "oops"),
        ((codes.UNIMPLEMENTED, "nothing", "0"), RequestError, "nothing"),
        ((codes.UNAVAILABLE, "model is being loaded", "1000"), ScorerUnavailable, "loaded"),
    ]
    with (
        scripted_grpc(*(answer for answer, _, _ in cases)) as (url, _),
        kind(url, model="m") as client,
    ):
        for _, error, said in cases:
            with pytest.raises(error, match=said):
                client.rank("u", ["a"])


@BOTH
def test_over_grpc_silence_and_nobody_are_unavailable(kind: Any, world: World) -> None:
    with serving_grpc(world) as port:
        pass
    with (
        kind(f"grpc://127.0.0.1:{port}") as client,
        pytest.raises(ScorerUnavailable, match="is a scorer running"),
    ):
        client.rank("u", ["a"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        with (
            kind(url, timeout_s=0.2) as client,
            pytest.raises(ScorerUnavailable, match=r"within 0\.2 s"),
        ):
            client.rank("u", ["a"])


@BOTH
def test_over_grpc_a_scorer_that_was_started_anew_is_found(kind: Any, world: World) -> None:
    with serving_grpc(world) as port:
        pass
    with kind(f"grpc://127.0.0.1:{port}", retries=Retries(most=5)) as client:
        for _ in range(2):
            with serving_grpc(world, port):
                assert client.rank("u", ["item-1"]).items


@BOTH
@ALL
def test_a_scorer_and_a_client_know_each_other_by_certificates(
    kind: Any, protocol: str, world: World, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path), Authority(mkdir(tmp_path / "other"))
    server, own = authority.pair("server"), authority.pair("client")
    world.settings = world.settings.model_copy(
        update={
            "tls_cert": server.cert,
            "tls_key": server.key,
            "tls_client_ca": authority.certificate,
        }
    )
    with serving(world, protocol) as url:
        tls = Tls(authority.certificate, own.cert, own.key)
        with kind(url, tls=tls, **over(protocol)) as client:
            assert client.rank("u", ["item-1"]).items
        for stranger in (None, Tls(other.certificate, own.cert, own.key)):
            with (
                kind(url, tls=stranger, **over(protocol)) as client,
                pytest.raises(ScorerError, match=r"no TLS with it: .*(?i:certificate)") as refused,
            ):
                client.rank("u", ["item-1"])
            assert not isinstance(refused.value, ScorerUnavailable)
        with (
            kind(url, tls=Tls(authority.certificate), **over(protocol)) as client,
            pytest.raises(ScorerError),
        ):
            client.rank("u", ["item-1"])


@ALL
def test_files_that_are_no_certificates_are_one_line(protocol: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, locked = authority.pair("good"), authority.pair("locked", b"secret")
    scheme = "grpcs" if protocol == "grpc" else "https"
    for tls in (
        Tls(tmp_path / "nowhere.pem"),
        Tls(good.key),
        Tls(certificate=good.cert),
        Tls(certificate=good.cert, key=locked.key),
        Tls(certificate=locked.cert, key=locked.key),
    ):
        with pytest.raises(ScorerError, match=r"no TLS with .*tmp.*name files in PEM") as error:
            Blocking(f"{scheme}://h", tls=tls, **over(protocol))
        assert "\n" not in str(error.value)


def test_a_url_and_a_protocol_that_do_not_go_together_are_refused() -> None:
    for url, protocol in [("http://h", "grpc"), ("grpc://h", "binary"), ("grpc://h", "json")]:
        with pytest.raises(ScorerError, match="is no URL for protocol"):
            Blocking(url, protocol=protocol)


def mkdir(directory: Path) -> Path:
    directory.mkdir()
    return directory
