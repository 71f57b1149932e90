"""The load: clients of all protocols, who ask, hang up, and pass on what became of each request."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, Self

from tests.soak.asking import ITEMS, MOST, Asked, draw
from tests.soak.checking import SILENT_S, Outcome
from tests.soak.clients import Client, Doubled, Grpc, Http1, Http2, NotAnswered

HTTP1: Final = 6
"""Clients of HTTP/1.1, each on a connection of its own."""
HTTP2: Final = (2, 3)
"""Connections of HTTP/2, and requests under way on each."""
GRPC: Final = (3, 2)
"""The same of gRPC."""

HANGS_UP: Final = 0.04
"""Share of requests whose client leaves before the answer."""

BURST: Final = 150
"""Clients of an overload."""

BEHIND: Final = 200
"""Outcomes that wait to be judged from which on no more is asked."""


class Load:
    """Clients in an event loop and a thread of their own.

    Args:
        ports: of HTTP and of gRPC.
        rate: requests a second, together.
        seed: of all that is drawn.
        versions: that requests may name.
        told: takes outcomes; called in the load's thread.
        waiting: how many outcomes wait to be judged.
    """

    def __init__(
        self,
        ports: tuple[int, int],
        rate: float,
        seed: int,
        versions: Sequence[str],
        told: Callable[[Outcome], None],
        waiting: Callable[[], int],
    ) -> None:
        self.hung_up = 0
        self._ports = ports
        self._rate = rate
        self._seed = seed
        self._versions = versions
        self._told = told
        self._waiting = waiting
        self._numbers = itertools.count()
        self._ended = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._running = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def stop(self) -> None:
        """Ask no more, wait for what is under way, and close all connections."""
        if self._running is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._running.result()
            self._running = None

    def burst(self, seconds: float, seed: int) -> None:
        """Far more at once than can be answered, beside what there is."""
        asyncio.run_coroutine_threadsafe(self._burst(seconds, seed), self._loop).result()

    async def _run(self) -> None:
        http, grpc = self._ports
        clients: list[tuple[Client, int]] = [(Http1(http), 1) for _ in range(HTTP1)]
        clients += [(Http2(http), HTTP2[1]) for _ in range(HTTP2[0])]
        clients += [(Grpc(grpc), GRPC[1]) for _ in range(GRPC[0])]
        users = [client for client, times in clients for _ in range(times)]
        pause_s = len(users) / self._rate
        try:
            async with asyncio.TaskGroup() as group:
                for number, client in enumerate(users):
                    chance = random.Random(f"{self._seed} {number}")
                    group.create_task(self._ask_on(client, chance, pause_s))
        finally:
            for client, _ in clients:
                await client.close()

    async def _ask_on(self, client: Client, chance: random.Random, pause_s: float) -> None:
        while not self._ended.is_set():
            await asyncio.sleep(chance.expovariate(1 / pause_s))
            while self._waiting() > BEHIND:  # noqa: ASYNC110  # another thread's queue
                await asyncio.sleep(0.05)
            asked = draw(chance, next(self._numbers), self._versions)
            if chance.random() < HANGS_UP:
                await client.hang_up(asked, chance.choice((0.1, 0.5, 0.9, 1.0)))
                self.hung_up += 1
            else:
                await self._ask(client, asked)

    async def _ask(self, client: Client, asked: Asked) -> None:
        began = time.monotonic()
        answer, lost = None, ""
        try:
            async with asyncio.timeout(SILENT_S + 1):
                answer = await client.ask(asked)
        except TimeoutError:
            lost = "silent"
            await client.close()
        except (NotAnswered, Doubled) as error:
            lost = f"{type(error).__name__}: {error}"
        except (ValueError, KeyError) as error:
            lost = f"not understood: {error!r}"
        self._told(Outcome(asked, client.name, began, time.monotonic(), answer, lost))
        if answer is None:
            await asyncio.sleep(0.05)  # nobody listens perhaps

    async def _burst(self, seconds: float, seed: int) -> None:
        chance = random.Random(seed)
        until = time.monotonic() + seconds
        items = [f"item-{1 + number % ITEMS}" for number in range(MOST)]

        async def ask_on() -> None:
            client = Http1(self._ports[0])
            while time.monotonic() < until:
                timeout_s = chance.choice((None, 0.2, 0.05))
                asked = Asked(next(self._numbers), "binary", "user-1", items, timeout_s=timeout_s)
                await self._ask(client, asked)
            await client.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(BURST):
                group.create_task(ask_on())
