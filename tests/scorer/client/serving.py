"""Servers that a client of any protocol can ask: of the tiny world, or with a script."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio

from scorer.client import AsyncRankClient, RankClient
from scorer.grpc.server import GrpcServer
from scorer.tls import TlsFiles
from scorer.turns import Turns
from tests.scorer.conftest import World, app_of
from tests.scorer.http.serving import serving as serving_http

PROTOCOLS = ("json", "binary", "grpc")


@contextlib.contextmanager
def serving(world: World, protocol: str) -> Iterator[str]:
    """The world's scorer behind a real socket; its URL. TLS as its settings say."""
    secure = "s" if world.settings.tls_cert is not None else ""
    if protocol == "grpc":
        with serving_grpc(world) as port:
            yield f"grpc{secure}://127.0.0.1:{port}"
    else:
        with serving_http(app_of(world), world.settings) as served:
            yield f"http{secure}://127.0.0.1:{served.port}"


@contextlib.contextmanager
def serving_grpc(world: World, port: int = 0, tls: TlsFiles | None = None) -> Iterator[int]:
    settings = world.settings.model_copy(update={"grpc_port": port})
    turns = Turns(max_waiting=64, deadline_s=5)
    parts = world.service, settings, world.metrics, world.registry, turns, world.access
    with in_loop() as run:
        server = GrpcServer(*parts, tls)
        yield run(server.start())
        run(server.stop(grace_s=0))


@contextlib.contextmanager
def scripted_grpc(
    *answers: bytes | tuple[grpc.StatusCode, str, str],
) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers calls with one after another, a message or a status, a detail and after
    how many ms to come again. Gives its URL and the context of each call."""
    contexts: list[Any] = []

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    async def answer(request: bytes, context: Any) -> bytes:
        contexts.append((context.peer(), context.time_remaining()))
        said = answers[len(contexts) - 1]
        if isinstance(said, bytes):
            return said
        code, detail, pushback = said
        await context.abort(code, detail, (("grpc-retry-pushback-ms", pushback),))
        raise AssertionError

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    with in_loop() as run:
        server, port = run(start())
        yield f"grpc://127.0.0.1:{port}", contexts
        run(server.stop(None))


@contextlib.contextmanager
def in_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines in an event loop of a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


class Blocking:
    """A client, each of whose answers is there when its method returns."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._client = RankClient(*arguments, **more)

    def __enter__(self) -> RankClient:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


class Asynchronous:
    """The same of the client with asyncio, in an event loop of its own."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._client = AsyncRankClient(*arguments, **more)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    def rank(self, *arguments: Any, **more: Any) -> Any:
        return self._loop.run_until_complete(self._client.rank(*arguments, **more))

    def score(self, *arguments: Any, **more: Any) -> Any:
        return self._loop.run_until_complete(self._client.score(*arguments, **more))

    def tell(self, *arguments: Any, **more: Any) -> Any:
        return self._loop.run_until_complete(self._client.tell(*arguments, **more))


KINDS: Sequence[type[Any]] = (Blocking, Asynchronous)
