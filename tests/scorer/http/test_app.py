from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.behaviors import Source, pack_behavior
from infra.metrics import ScorerMetrics
from infra.store import Append, Group
from infra.stores.memory import MemoryStore
from scorer.http.app import create_app
from scorer.process import ASK_USERS_S, StoreQuestion
from scorer.ranking import Ranker, Ranking
from scorer.readiness import LOADING, Readiness
from scorer.service import Service
from tests.scorer.conftest import Clock, World, client_of

CANDIDATES = [f"item-{i}" for i in range(1, 51)]


def assert_refused(response: httpx.Response, status: int, field: str | None, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["instance"] == response.headers["x-request-id"]
    assert problem.get("field") == field
    assert "Traceback" not in problem["detail"]
    assert "\n" not in problem["detail"]
    for word in words:
        assert word in problem["detail"]


def assert_refused_v2(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert error == response.json()["error"]
    for word in words:
        assert word in error


async def test_rank_gives_the_items_highest_first(http: httpx.AsyncClient, world: World) -> None:
    response = await http.post("/v1/rank", json={"user": "u", "candidates": CANDIDATES})
    assert response.status_code == 200
    answer = response.json()
    assert answer["user"] == "u"
    assert answer["model"] == "tiny"
    assert answer["version"] == world.bundle.version
    assert answer["history"] == "interests"
    assert answer["unknown_items"] == []
    assert answer["as_of"]["count"] == 30
    ctrs = [line["ctr"] for line in answer["items"]]
    assert ctrs == sorted(ctrs, reverse=True)
    assert {line["item"] for line in answer["items"]} == set(CANDIDATES)
    expected = world.ranker.rank("u", CANDIDATES).ctrs
    by_item = {line["item"]: line["ctr"] for line in answer["items"]}
    served = [by_item[item] for item in CANDIDATES]
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-8)


async def test_top_k_keeps_the_highest(http: httpx.AsyncClient) -> None:
    request = {"user": "u", "candidates": CANDIDATES}
    every = (await http.post("/v1/rank", json=request)).json()["items"]
    first = (await http.post("/v1/rank", json={**request, "top_k": 3})).json()["items"]
    assert first == every[:3]


async def test_top_k_beyond_the_candidates_gives_all(http: httpx.AsyncClient) -> None:
    request = {"user": "u", "candidates": ["item-1", "item-2"], "top_k": 10}
    assert len((await http.post("/v1/rank", json=request)).json()["items"]) == 2


async def test_ties_keep_the_order_of_the_request(http: httpx.AsyncClient) -> None:
    candidates = ["b", "a", "item-1", "c", "a"]
    answer = (await http.post("/v1/rank", json={"user": "u", "candidates": candidates})).json()
    unknown = [line["item"] for line in answer["items"] if line["item"] != "item-1"]
    assert unknown == ["b", "a", "c", "a"]
    assert answer["unknown_items"] == ["b", "a", "c"]


async def test_unknown_items_stand_last_where_a_request_says_so(http: httpx.AsyncClient) -> None:
    request = {"user": "u", "candidates": ["x", "item-1", "y"], "unknown_items": "last"}
    answer = (await http.post("/v1/rank", json=request)).json()
    assert [line["item"] for line in answer["items"]] == ["item-1", "x", "y"]
    assert answer["items"][-1]["ctr"] == 0
    assert answer["unknown_items"] == ["x", "y"]


async def test_unknown_items_are_refused_where_a_request_says_so(http: httpx.AsyncClient) -> None:
    request = {"user": "u", "candidates": ["item-1", "x"], "unknown_items": "refuse"}
    response = await http.post("/v1/rank", json=request)
    assert response.status_code == 422
    problem = response.json()
    assert problem["type"] == "/problems/unknown-items"
    assert problem["field"] == "candidates"
    assert "'x'" in problem["detail"]


async def test_another_wish_for_unknown_items_is_refused(http: httpx.AsyncClient) -> None:
    request = {"user": "u", "candidates": ["item-1"], "unknown_items": "drop" * 1000}
    response = await http.post("/v1/rank", json=request)
    assert response.status_code == 400
    said = f"unknown_items is {'drop' * 16!r}, expected score, last, refuse"
    assert response.json()["detail"] == said


async def test_an_unknown_user_is_named_as_such(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/rank", json={"user": "who", "candidates": ["item-1"]})).json()
    assert answer["history"] == "none"
    assert "as_of" not in answer


async def test_a_behavior_is_in_the_next_answer(http: httpx.AsyncClient, world: World) -> None:
    request = {"user": "u", "candidates": CANDIDATES}
    before = (await http.post("/v1/rank", json=request)).json()
    world.append("u", ["item-44"])
    after = (await http.post("/v1/rank", json=request)).json()
    assert (before["newer"], after["newer"]) == (0, 1)
    assert before["items"] != after["items"]


async def test_time_moves_the_ctrs(http: httpx.AsyncClient) -> None:
    request = {"user": "u", "candidates": CANDIDATES}
    now = (await http.post("/v1/rank", json=request)).json()["items"]
    later = (await http.post("/v1/rank", json={**request, "time": 1_900_000_000_000})).json()
    assert now != later["items"]


@pytest.mark.parametrize(
    ("body", "field", "word"),
    [
        (b"", "body", "empty"),
        (b"{", "body", "JSON"),
        (b"\xff\xfe", "body", "JSON"),
        (b"[]", "body", "object"),
        (b"null", "body", "object"),
        (b"[" * 15_000, "body", ""),
        (b'{"user":' + b"[" * 15_000, "user", ""),
        (b'{"candidates": ["a"]}', "user", "missing"),
        (b'{"user": "u"}', "candidates", "missing"),
        (b'{"user": 7, "candidates": ["a"]}', "user", "str"),
        (b'{"user": null, "candidates": ["a"]}', "user", "str"),
        (b'{"user": "", "candidates": ["a"]}', "user", "length"),
        (b'{"user": "%b", "candidates": ["a"]}' % (b"x" * 257), "user", "length"),
        ('{"user": "%s", "candidates": ["a"]}' % ("é" * 200), "user", "bytes"),
        (b'{"user": "\\ud800", "candidates": ["a"]}', "body", "JSON"),
        (b'{"user": "u", "candidates": "a"}', "candidates", "array"),
        (b'{"user": "u", "candidates": []}', "candidates", "empty"),
        (b'{"user": "u", "candidates": ["a", 3]}', "candidates[1]", "str"),
        (b'{"user": "u", "candidates": ["a", ""]}', "candidates[1]", "length"),
        (b'{"user": "u", "candidates": ["%b"]}' % (b"x" * 257), "candidates[0]", "length"),
        ('{"user": "u", "candidates": ["a", "%s"]}' % ("é" * 129), "candidates[1]", "256 bytes"),
        (b'{"user": "u", "candidates": ["%b"]}' % (rb"\u4e2d" * 86), "candidates[0]", "256 bytes"),
        (msgspec.json.encode({"user": "u", "candidates": ["a"] * 201}), "candidates", "200"),
        (b'{"user": "u", "candidates": ["a"], "top_k": 0}', "top_k", "1"),
        (b'{"user": "u", "candidates": ["a"], "top_k": 201}', "top_k", "200"),
        (b'{"user": "u", "candidates": ["a"], "top_k": true}', "top_k", "int"),
        (b'{"user": "u", "candidates": ["a"], "top_k": 1.5}', "top_k", "int"),
        (b'{"user": "u", "candidates": ["a"], "top_k": NaN}', "body", "JSON"),
        (b'{"user": "u", "candidates": ["a"], "time": -1}', "time", "0"),
        (b'{"user": "u", "candidates": ["a"], "time": 1e999}', "time", "range"),
        (b'{"user": "u", "candidates": ["a"], "time": 99999999999999999999}', "time", ""),
        (b'{"user": "u", "candidates": ["a"], "usr": 1}', "usr", "did you mean user"),
        (b'{"user": "u", "candidates": ["a"], "zzz": 1}', "zzz", "top_k"),
    ],
)
async def test_a_bad_request_names_its_field(
    http: httpx.AsyncClient, body: bytes | str, field: str, word: str
) -> None:
    assert_refused(await http.post("/v1/rank", content=body), 400, field, word)


async def test_a_body_of_another_type_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/rank", data={"user": "u"})
    assert_refused(response, 415, "Content-Type", "application/json")


async def test_a_content_type_may_have_parameters(http: httpx.AsyncClient) -> None:
    body = b'{"user": "u", "candidates": ["item-1"]}'
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await http.post("/v1/rank", content=body, headers=headers)).status_code == 200


async def test_a_body_beyond_the_limit_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/rank", content=b" " * 20_001)
    assert_refused(response, 413, "body", "20000 bytes")


async def test_a_body_beyond_the_limit_without_a_length_is_refused(http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    response = await http.post("/v1/rank", content=chunks())
    assert_refused(response, 413, "body", "20000 bytes")


async def test_another_method_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/rank")
    assert_refused(response, 405, "method", "GET", "POST")
    assert response.headers["allow"] == "POST"


async def test_another_path_is_refused(http: httpx.AsyncClient) -> None:
    assert_refused(await http.get("/v1/nothing"), 404, "path", "/v1/nothing")


async def test_without_its_store_a_strict_scorer_is_a_503_that_says_when_to_retry(
    strict_world: World,
) -> None:
    strict_world.store.away = True
    async with client_of(strict_world) as http:
        response = await http.post("/v1/rank", json={"user": "u", "candidates": ["item-1"]})
    assert_refused(response, 503, None, "the store cannot be reached")
    assert "127.0.0.1" not in response.text
    assert int(response.headers["retry-after"]) > 0


async def test_requests_that_a_strict_scorer_refuses_are_one_line_of_the_log(
    strict_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    strict_world.store.away = True
    async with client_of(strict_world) as http:
        for _ in range(5):
            response = await http.post("/v1/rank", json={"user": "u", "candidates": ["item-1"]})
            assert response.status_code == 503
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1


async def test_without_its_store_a_ranking_says_that_it_is_degraded(
    http: httpx.AsyncClient, world: World
) -> None:
    request = {"user": "u", "candidates": ["item-1"]}
    assert (await http.post("/v1/rank", json=request)).json()["degraded"] is False
    world.store.away = True
    response = await http.post("/v1/rank", json=request)
    assert response.status_code == 200
    assert response.headers["lifelong-degraded"] == "store"
    answer = response.json()
    assert (answer["degraded"], answer["history"]) == (True, "none")


async def test_a_bug_is_told_without_a_traceback(http: httpx.AsyncClient, world: World) -> None:
    class Broken(Ranker):
        def rank(self, *_: Any, **__: Any) -> Ranking:
            raise ZeroDivisionError("secret")

    broken = Broken(world.store, world.bundle, world.system, world.metrics)
    world.service.serve(broken, lambda: None)
    response = await http.post("/v1/rank", json={"user": "u", "candidates": ["item-1"]})
    assert_refused(response, 500, None)
    assert "secret" not in response.text


# The surrogate range has no place in JSON text; everything else may come.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "user": JSON_VALUES | st.text(min_size=1, max_size=300),
        "candidates": JSON_VALUES | st.lists(st.text(max_size=5) | JSON_VALUES, max_size=5),
        "top_k": JSON_VALUES,
        "time": JSON_VALUES,
        "unknown_items": JSON_VALUES | st.sampled_from(["score", "last", "refuse"]),
        "inputs": JSON_VALUES,
        "outputs": JSON_VALUES,
        "extra": JSON_VALUES,
    },
)


def _json(value: object) -> bytes:
    import json

    return json.dumps(value).encode()


BODIES = st.binary(max_size=60) | REQUESTS.map(_json) | JSON_VALUES.map(_json)
FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(
    body=BODIES,
    path=st.sampled_from(["/v1/rank", "/v2/models/tiny/infer"]),
    headers=st.sampled_from(
        [
            {},
            {"inference-header-content-length": "20"},
            {"inference-header-content-length": "-1"},
            {"inference-header-content-length": "²"},
            {"inference-header-content-length": "99999999999999999999"},
        ]
    ),
)
def test_no_body_makes_the_scorer_fail(
    world: World, body: bytes, path: str, headers: dict[str, str]
) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def post() -> httpx.Response:
        async with client_of(world) as client:
            return await client.post(path, content=body, headers=encoded)

    response = asyncio.run(post())
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        said = response.json()["detail" if path == "/v1/rank" else "error"]
        assert isinstance(said, str)


TENSORS = st.fixed_dictionaries(
    {"name": st.sampled_from(["user", "candidates", "time", "x"])},
    optional={
        "shape": st.lists(st.integers(-1, 3) | st.just(2**70), max_size=2) | JSON_VALUES,
        "datatype": st.sampled_from(["BYTES", "UINT64", "INT64", "FP32", ""]),
        "data": st.lists(st.text(max_size=3) | st.integers(-1, 2**65), max_size=3) | JSON_VALUES,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "x"]), st.integers(-1, 30) | st.booleans()
        ),
    },
)


@FUZZ
@given(
    inputs=st.lists(TENSORS, max_size=4),
    outputs=st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["ctr", "unknown", "x"])},
            optional={"parameters": st.dictionaries(st.just("binary_data"), st.booleans())},
        ),
        max_size=3,
    ),
    tail=st.binary(max_size=30),
    binary=st.booleans(),
)
def test_no_tensors_make_the_scorer_fail(
    world: World, inputs: list[object], outputs: list[object], tail: bytes, binary: bool
) -> None:
    head = _json({"inputs": inputs, "outputs": outputs})
    headers = {"inference-header-content-length": str(len(head))} if binary else {}
    body = head + tail if binary else head

    async def post() -> httpx.Response:
        async with client_of(world) as client:
            return await client.post("/v2/models/tiny/infer", content=body, headers=headers)

    assert asyncio.run(post()).status_code < 500


async def test_live_needs_nothing(world: World) -> None:
    async with unloaded(world) as client:
        assert (await client.get("/v2/health/live")).status_code == 200


async def test_not_ready_while_the_bundle_is_being_loaded(world: World) -> None:
    async with unloaded(world) as client:
        response = await client.get("/v2/health/ready")
        assert response.status_code == 503
        assert response.json() == {"ready": False, "reason": LOADING}
        refused = await client.post("/v1/rank", json={"user": "u", "candidates": ["a"]})
        assert_refused(refused, 503, "model", "being loaded")
        assert "retry-after" in refused.headers


def unloaded(world: World) -> httpx.AsyncClient:
    service = Service(Readiness(world.metrics))
    app = create_app(service, world.settings, world.metrics, world.registry)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://scorer")


async def test_a_strict_scorer_s_readiness_follows_the_store(strict_world: World) -> None:
    async with client_of(strict_world) as http:
        assert (await http.get("/v2/health/ready")).json() == {"ready": True}
        assert strict_world.registry.get_sample_value("lifelong_scorer_ready") == 1

        strict_world.store.away = True
        strict_world.clock.now += 2
        response = await http.get("/v2/health/ready")
        assert response.status_code == 503
        assert "cannot be reached" in response.json()["reason"]
        assert "127.0.0.1" not in response.text
        assert strict_world.registry.get_sample_value("lifelong_scorer_ready") == 0

        strict_world.store.away = False
        strict_world.clock.now += 2
        assert (await http.get("/v2/health/ready")).json() == {"ready": True}


async def test_a_scorer_that_degrades_is_ready_without_its_store_and_says_so(
    http: httpx.AsyncClient, world: World
) -> None:
    world.store.away = True
    world.clock.now += 2
    response = await http.get("/v2/health/ready")
    assert response.status_code == 200
    (warning,) = response.json()["warnings"]
    assert warning.startswith("rankings are degraded: ")
    assert "cannot be reached" in warning
    assert world.registry.get_sample_value("lifelong_scorer_ready") == 1
    assert world.registry.get_sample_value("lifelong_scorer_store_answers") == 0
    world.store.away = False
    world.clock.now += 2
    assert (await http.get("/v2/health/ready")).json() == {"ready": True}


async def test_a_store_without_a_single_user_is_a_warning(
    http: httpx.AsyncClient, world: World
) -> None:
    store = MemoryStore()
    world.service.readiness.loaded(StoreQuestion(store))
    (warning,) = (await http.get("/v2/health/ready")).json()["warnings"]
    assert "has no users" in warning
    assert world.registry.get_sample_value("lifelong_scorer_store_answers") == 1
    assert world.registry.get_sample_value("lifelong_scorer_store_empty") == 1
    behavior = pack_behavior(1, 1, 0, 0, 1)
    store.append([Group(Source(1, 1), [Append("u", [behavior], [0], [0])])], 1)
    world.clock.now += 2
    assert (await http.get("/v2/health/ready")).json() == {"ready": True}
    assert world.registry.get_sample_value("lifelong_scorer_store_empty") == 0


def test_a_store_that_is_emptied_is_a_warning_again() -> None:
    store, clock = MemoryStore(), Clock()
    ask = StoreQuestion(store, clock)
    append = Append("u", [pack_behavior(1, 1, 0, 0, 1)], [0], [0])
    store.append([Group(Source(1, 1), [append])], 1)
    assert ask() is None
    store.forget(["u"], 2)
    clock.now += ASK_USERS_S
    warning = ask()
    assert warning is not None
    assert "has no users" in warning


async def test_many_probes_are_one_question_to_the_store(
    http: httpx.AsyncClient, world: World
) -> None:
    world.store.reads = 0
    await asyncio.gather(*(http.get("/v2/health/ready") for _ in range(20)))
    assert world.store.reads == 1


async def test_a_store_that_does_not_answer_is_not_ready(
    metrics: ScorerMetrics, until: Callable[[], None]
) -> None:
    readiness = Readiness(metrics, timeout_s=0.05)
    readiness.loaded(until)
    assert "has not answered" in str(await readiness.reason())
    readiness.close()


@pytest.fixture
def metrics(world: World) -> ScorerMetrics:
    return world.metrics


@pytest.fixture
def until() -> Any:
    """A question that is answered only when the test is over."""
    over = threading.Event()

    def ask() -> None:
        over.wait()

    yield ask
    over.set()


async def test_not_ready_while_stopping(http: httpx.AsyncClient, world: World) -> None:
    world.service.readiness.stopping()
    response = await http.get("/v2/health/ready")
    assert response.status_code == 503
    assert "stopping" in response.json()["reason"]


async def test_metrics_show_requests_by_route_and_status(http: httpx.AsyncClient) -> None:
    await http.post("/v1/rank", json={"user": "u", "candidates": ["item-1"]})
    await http.post("/v1/rank", content=b"{")
    await http.get("/nowhere/user-17")
    text = (await http.get("/metrics")).text
    assert 'lifelong_scorer_requests_total{route="/v1/rank",status="200"} 1.0' in text
    assert 'lifelong_scorer_requests_total{route="/v1/rank",status="400"} 1.0' in text
    assert 'lifelong_scorer_rejected_total{reason="malformed"} 1.0' in text
    assert "user-17" not in text


async def test_the_server_introduces_itself(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v2")).json()["name"] == "lifelong"


async def test_the_model_introduces_itself(http: httpx.AsyncClient, world: World) -> None:
    about = (await http.get("/v2/models/tiny")).json()
    assert about["name"] == "tiny"
    assert about["versions"] == [world.bundle.version]
    assert [tensor["name"] for tensor in about["inputs"]] == ["user", "candidates", "time"]
    assert (await http.get("/v2/models/tiny/ready")).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/other/ready"])
async def test_another_model_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    assert_refused_v2(await http.get(path), 404, "other", "tiny")


async def test_another_model_is_not_asked(http: httpx.AsyncClient) -> None:
    assert_refused_v2(await http.post("/v2/models/other/infer", content=b"{}"), 404, "tiny")
