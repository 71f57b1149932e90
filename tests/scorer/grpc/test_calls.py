from __future__ import annotations

import asyncio
import gc
import uuid
import weakref
from collections.abc import Callable
from functools import partial

import grpc
import pytest

from scorer.grpc.calls import PUSHBACK
from scorer.ranking import Ranker, Ranking
from scorer.readiness import Readiness
from scorer.service import Service
from scorer.turns import Head, Turn, Turns
from tests.scorer.conftest import World
from tests.scorer.grpc.conftest import Client, SlowRanker, begun, client_of, typed

ROUTE = "/inference.GRPCInferenceService/ModelInfer"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)


def count(world: World, status: int) -> float | None:
    labels = {"route": ROUTE, "status": str(status)}
    return world.registry.get_sample_value("lifelong_scorer_requests_total", labels)


async def test_calls_are_counted_and_timed_by_their_method(client: Client, world: World) -> None:
    await client.call("ModelInfer", typed())
    await client.refusal("ModelInfer", typed(model_name="huge"))
    await until(lambda: count(world, 404))
    assert count(world, 200) == 1
    assert count(world, 404) == 1
    timed = world.registry.get_sample_value(
        "lifelong_scorer_request_seconds_count", {"route": ROUTE}
    )
    assert timed == 2
    assert world.registry.get_sample_value("lifelong_scorer_inflight") == 0


async def test_a_scorer_that_loads_is_unavailable_for_now(world: World) -> None:
    world.service = Service(Readiness(world.metrics))
    async with client_of(world) as client:
        assert (await client.call("ServerLive")).live
        assert not (await client.call("ServerReady")).ready
        error = await client.refusal("ModelInfer", typed())
    world.service.close()
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error.details() == "model is being loaded; come again"
    assert (PUSHBACK, "1000") in list(error.trailing_metadata())


def _gone(held: weakref.ref[Ranker]) -> bool:
    return held() is None


async def test_the_last_call_keeps_nothing_of_the_ranker_that_refused_it(
    client: Client, world: World
) -> None:
    """grpcio has its state until another call comes: a bundle that has been exchanged would stay,
    and no other could be taken up. Nor is it to take a search for what refers to itself.
    """
    unreadable = typed()
    unreadable.inputs[0].datatype = "FP32"
    gc.disable()
    try:
        for refused in (typed(model_version="another"), unreadable):
            world.service.replace(Ranker(world.store, world.bundle, world.system, world.metrics))
            held = weakref.ref(world.service.ranker)
            await client.refusal("ModelInfer", refused)
            world.service.replace(world.ranker)
            await until(partial(_gone, held))
    finally:
        gc.enable()


async def test_a_store_that_is_away_makes_rankings_unavailable(strict_world: World) -> None:
    strict_world.store.away = True
    async with client_of(strict_world) as client:
        error = await client.refusal("ModelInfer", typed())
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the store cannot be reached"
    assert PUSHBACK in dict(error.trailing_metadata())


async def test_too_many_waiting_exhaust_the_scorer(world: World, slow: SlowRanker) -> None:
    async with client_of(world, Turns(max_waiting=1, deadline_s=5)) as client:
        first = client.call("ModelInfer", typed())
        await begun(slow)
        second = client.call("ModelInfer", typed())
        await until(lambda: world.registry.get_sample_value("lifelong_scorer_inflight") == 2)
        error = await client.refusal("ModelInfer", typed())
        slow.go_on.set()
        assert (await first).outputs
        assert (await second).outputs
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert PUSHBACK in dict(error.trailing_metadata())


async def test_over_http_and_grpc_the_turns_are_the_same(world: World) -> None:
    turns = Turns(max_waiting=1, deadline_s=5)
    ahead = [turns.admit(Head("/v1/rank", 100)) for _ in range(2)]
    async with client_of(world, turns) as client:
        error = await client.refusal("ModelInfer", typed())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        turns.give_back(ahead[0])
        assert (await client.call("ModelInfer", typed())).outputs


@pytest.mark.parametrize(
    ("metadata", "level", "client_"),
    [
        ((), 1, "127.0.0.1"),
        ((("priority", "u=0"), ("x-client-id", "batch")), 0, "batch"),
    ],
)
async def test_a_call_tells_its_urgency_its_sender_and_its_time(
    world: World, metadata: tuple[tuple[str, str], ...], level: int, client_: str
) -> None:
    heads = []

    class Noting(Turns):
        def admit(self, head: Head) -> Turn:
            heads.append(head)
            return super().admit(head)

    async with client_of(world, Noting(max_waiting=1, deadline_s=5)) as client:
        await client.call("ModelInfer", typed(), metadata=metadata, timeout=60)
    (head,) = heads
    assert (head.level, head.client, head.size) == (level, client_, typed().ByteSize())
    assert head.timeout_s is not None
    assert 0 < head.timeout_s <= 60


async def test_a_ranking_past_the_scorers_deadline_is_given_up(
    world: World, slow: SlowRanker
) -> None:
    async with client_of(world, Turns(max_waiting=1, deadline_s=0.05)) as client:
        error = await client.refusal("ModelInfer", typed())
        slow.go_on.set()
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "was not scored within 0.05 s" in (error.details() or "")


async def test_past_its_own_deadline_a_waiting_call_never_takes_the_thread(
    world: World, slow: SlowRanker
) -> None:
    async with client_of(world) as client:
        first = client.call("ModelInfer", typed())
        await begun(slow)
        error = await client.refusal("ModelInfer", typed(), timeout=0.05)
        await until(lambda: count(world, 499) or count(world, 503))  # gRPC's timer, or the turn's
        slow.go_on.set()
        await first
        assert (await client.call("ModelInfer", typed())).outputs
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert slow.ranked == 2


async def test_cancelled_while_it_waits_a_call_never_takes_the_thread(
    world: World, slow: SlowRanker
) -> None:
    turns = Turns(max_waiting=1, deadline_s=5)
    async with client_of(world, turns) as client:
        first = client.call("ModelInfer", typed())
        await begun(slow)
        second = client.call("ModelInfer", typed())
        await until(lambda: world.registry.get_sample_value("lifelong_scorer_inflight") == 2)
        second.cancel()
        await until(lambda: count(world, 499))
        third = client.call("ModelInfer", typed())  # there is a turn for it again
        slow.go_on.set()
        assert (await first).outputs
        assert (await third).outputs
    assert slow.ranked == 2


async def test_a_message_beyond_the_limit_is_refused(client: Client) -> None:
    request = typed()
    request.parameters["long"].string_param = "x" * 20_000
    error = await client.refusal("ModelInfer", request)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_is_packed_counts_by_its_size_unpacked(client: Client) -> None:
    request = typed()
    request.parameters["long"].string_param = "x" * 1_000_000
    error = await client.refusal("ModelInfer", request, compression=grpc.Compression.Gzip)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_requests_may_be_packed(client: Client) -> None:
    assert (await client.call("ModelInfer", typed(), compression=grpc.Compression.Gzip)).outputs


async def test_an_error_of_our_own_is_told_without_its_text(world: World) -> None:
    class BrokenRanker(SlowRanker):
        def rank_keys(self, *_args: object, **_more: object) -> Ranking:
            raise ValueError("a secret")

    world.service.serve(BrokenRanker(world), lambda: None)
    async with client_of(world) as client:
        error = await client.refusal("ModelInfer", typed())
    assert error.code() == grpc.StatusCode.INTERNAL
    assert error.details() == "the request failed inside the scorer; its log says why"
    assert count(world, 500) == 1


async def test_bytes_that_are_no_message_are_the_caller_s_fault(
    client: Client, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary(ROUTE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(b"\x0a\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value.details()).startswith("message is no inference.ModelInferRequest: ")
    await until(lambda: count(world, 400))
    assert caplog.records == []


async def test_a_call_s_id_comes_back(client: Client) -> None:
    given = (("x-request-id", "seven"),)
    call = client.call("ModelInfer", typed(), metadata=given)
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "seven"
    refused = await client.refusal("ModelInfer", typed(model_name="other"), metadata=given)
    assert dict(refused.trailing_metadata())["x-request-id"] == "seven"


async def test_a_call_without_an_id_is_given_one(client: Client) -> None:
    call = client.call("ServerLive")
    await call
    uuid.UUID(dict(await call.trailing_metadata())["x-request-id"])
