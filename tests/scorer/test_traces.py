"""One trace for a ranking, whichever protocol brings it, and its stages."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from io import StringIO
from typing import Any

import grpc
import httpx
import pytest

from infra.settings import Settings, TracingSettings
from infra.tracing import Tracing
from scorer.grpc import open_inference_pb2 as pb
from scorer.http.app import create_app
from tests.scorer.conftest import World
from tests.scorer.grpc.conftest import typed
from tests.scorer.running import free_port, running, until_ready
from tests.trace_receiver import Receiver, attributes, receiving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "seven"}
REQUEST = {"user": "u", "candidates": ["item-1", "item-2", "nobody's"]}
STAGES = ["admission", "waiting", "decode", "store", "features", "model", "encode"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


class Traced:
    """The application of a world, whose rankings are traced."""

    def __init__(self, world: World, receiver: Receiver, sample: float = 0.0) -> None:
        settings = TracingSettings(endpoint=receiver.url, sample=sample)
        self.tracing = Tracing(settings, "scorer", world.metrics.spans)
        self.receiver = receiver
        app = create_app(
            world.service,
            world.settings,
            world.metrics,
            world.registry,
            access=world.access,
            tracing=self.tracing,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://scorer")

    async def post(self, path: str = "/v1/rank", **asked: Any) -> httpx.Response:
        async with self.http:
            answer = await self.http.post(path, **asked)
        self.tracing.close()
        return answer


async def test_a_ranking_is_a_span_of_its_sender_s_trace(world: World, receiver: Receiver) -> None:
    answer = await Traced(world, receiver).post(json=REQUEST, headers=HEADERS)

    (span,) = receiver.named("POST /v1/rank")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert receiver.below(span) == STAGES
    told = attributes(span)
    assert told["lifelong.candidates"] == 3
    assert told["lifelong.system"] == "encode"
    assert told["lifelong.bundle.version"] == world.bundle.version
    assert told["lifelong.history"] == "interests"
    assert told["lifelong.degraded"] is False
    assert told["lifelong.request_id"] == "seven"
    assert told["http.response.status_code"] == 200


async def test_spans_name_no_user_and_no_item(world: World, receiver: Receiver) -> None:
    world.append("somebody", ["item-1"])
    asked = {"user": "somebody", "candidates": ["item-1", "elsewhere"]}
    await Traced(world, receiver).post(json=asked, headers=HEADERS)

    said = "".join(map(str, receiver.spans))
    assert "POST /v1/rank" in said
    assert not any(name in said for name in ("somebody", "item-1", "elsewhere"))


async def test_a_ranking_without_the_store_is_told_as_degraded(
    world: World, receiver: Receiver
) -> None:
    world.store.away = True
    await Traced(world, receiver).post(json=REQUEST, headers=HEADERS)

    (span,) = receiver.named("POST /v1/rank")
    assert attributes(span)["lifelong.degraded"] is True


async def test_a_request_that_is_refused_tells_how_far_it_came(
    world: World, receiver: Receiver
) -> None:
    answer = await Traced(world, receiver).post(content=b"{", headers=HEADERS)

    (span,) = receiver.named("POST /v1/rank")
    assert receiver.below(span) == ["admission", "waiting"]
    assert attributes(span)["http.response.status_code"] == answer.status_code == 400
    assert not span.status.message


async def test_several_users_are_stages_of_one_request(world: World, receiver: Receiver) -> None:
    shape = {"datatype": "BYTES", "shape": [2, 1]}
    inputs = [
        {"name": "user", "datatype": "BYTES", "shape": [2], "data": ["u", "v"]},
        {"name": "candidates", **shape, "data": ["item-1", "item-2"]},
    ]
    await Traced(world, receiver).post(
        "/v2/models/tiny/infer", json={"inputs": inputs}, headers=HEADERS
    )

    (span,) = receiver.named("POST /v2/models/{name}/infer")
    each = ["features", "model"]
    read = ["admission", "waiting", "decode", "store"]
    assert receiver.below(span) == [*read, *each, *each, "encode"]
    assert attributes(span)["lifelong.rankings"] == 2


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{TRACE}-{PARENT}-00"}])
async def test_a_request_that_is_not_sampled_leaves_nothing(
    world: World, receiver: Receiver, headers: dict[str, str]
) -> None:
    answer = await Traced(world, receiver).post(json=REQUEST, headers=headers)

    assert "traceparent" not in answer.headers
    assert receiver.spans == []


async def test_what_is_no_ranking_is_not_traced(world: World, receiver: Receiver) -> None:
    traced = Traced(world, receiver, sample=1.0)
    await traced.post("/v2/repository/index", headers=HEADERS)

    assert receiver.spans == []


async def test_lines_name_a_trace_that_begins_here(
    world: World, receiver: Receiver, logged: StringIO
) -> None:
    world.store.away = True  # of which the breaker says a line
    await Traced(world, receiver, sample=1.0).post(json=REQUEST)

    (span,) = receiver.named("POST /v1/rank")
    first = json.loads(logged.getvalue().splitlines()[0])
    assert first["trace_id"] == span.trace_id.hex()


def test_a_scorer_traces_what_comes_by_any_protocol(settings: Settings, receiver: Receiver) -> None:
    update = {"grpc_port": free_port()}
    settings = settings.model_copy(
        update={
            "scorer": settings.scorer.model_copy(update=update),
            "tracing": TracingSettings(endpoint=receiver.url, sample=0.0),
        }
    )
    body, json_type = json.dumps(REQUEST), {"content-type": "application/json"}
    with running(settings):
        until_ready(settings)
        one = http.client.HTTPConnection("127.0.0.1", settings.scorer.port, timeout=30)
        one.request("POST", "/v1/rank", body, {**json_type, **HEADERS})
        answers = [one.getresponse().headers["traceparent"]]
        one.close()
        with httpx.Client(http1=False, http2=True, timeout=30) as two:
            url = f"http://127.0.0.1:{settings.scorer.port}/v1/rank"
            answered = two.post(url, content=body, headers={**json_type, **HEADERS})
            assert answered.http_version == "HTTP/2"
            answers.append(answered.headers["traceparent"])
        with grpc.insecure_channel(f"127.0.0.1:{settings.scorer.grpc_port}") as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                pb.ModelInferRequest.SerializeToString,
                pb.ModelInferResponse.FromString,
            )
            _, call = infer.with_call(typed(), timeout=30, metadata=tuple(HEADERS.items()))
            trailers = dict(call.trailing_metadata())
            assert trailers["x-request-id"] == "seven"
            answers.append(trailers["traceparent"])
        receiver.until(lambda: len(receiver.named("encode")) == 3 and len(asked(receiver)) == 3)
    assert [f"00-{TRACE}-{span.span_id.hex()}-01" for span in asked(receiver)] == answers
    for span in asked(receiver):
        assert receiver.below(span) == STAGES
    assert receiver.services == {"lifelong-scorer"}


def asked(receiver: Receiver) -> list[Any]:
    """The spans of requests, in their order."""
    found = [span for span in receiver.spans if span.parent_span_id.hex() == PARENT]
    return sorted(found, key=lambda span: span.start_time_unix_nano)
