"""``lifelong bench client``: what the clients of `scorer.client` take, beside the same on httpx.

One serving process on a core of its own, and on another one that asks it, one request after
another, as `lifelong.bench.load` has them. In each round all ways are asked in turn: latency as the
caller sees it, from arguments to an answer in objects or arrays, and processor time of the caller's
process, in which gRPC's threads count. The peer writes and reads the same bodies by the same code,
and sends them by httpx.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import httpx
import numpy as np

from infra.arrays import U64
from lifelong.bench.arrivals import keep_to
from lifelong.bench.load import Cores, Scene
from lifelong.demo.processes import free_port
from lifelong.machine import machine
from models.devices import one_thread
from scorer.client import AsyncRankClient, RankClient
from scorer.client.address import Address, Protocol, Tls
from scorer.client.exchange import Call, Reply, left
from scorer.client.http import TIME_LEFT
from scorer.client.kserve import HEADER_LENGTH

SIZES: Final = (100, 3000)
"""B."""


class Load(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each way and round."""


FULL: Final = Load(rounds=7, seconds=0.6)
QUICK: Final = Load(rounds=3, seconds=0.2)


class Way(NamedTuple):
    """A way of asking."""

    library: str
    """ours or httpx."""
    protocol: Protocol
    """json by ids; binary and grpc by keys."""
    blocking: bool

    def at(self, B: int) -> str:
        """What it is called, with B."""
        return f"{self.library} {self.protocol}, {self.kind}, {B:,}"

    @property
    def kind(self) -> str:
        """As figures name it."""
        return "blocking" if self.blocking else "asyncio"


ASKED: Final[tuple[tuple[str, Protocol], ...]] = (
    ("ours", "json"),
    ("httpx", "json"),
    ("ours", "binary"),
    ("httpx", "binary"),
    ("ours", "grpc"),
)

WAYS: Final = tuple(
    Way(library, protocol, blocking) for blocking in (True, False) for library, protocol in ASKED
)

Question = tuple[str, U64, list[str]]
"""A user, and candidates by keys u64[B] and by ids."""


@dataclass(slots=True)
class Taken:
    """What requests of a way took."""

    latency: list[float]
    """Of each, s, over all rounds."""
    cpu_us: list[float]
    """Of the client's process, a request; a value a round."""

    def quantile_ms(self, q: float) -> float:
        """A quantile of the latencies."""
        return round(1000 * float(np.quantile(self.latency, q)), 3)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object."""
    load, cores = QUICK if quick else FULL, Cores.here()
    with tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory:
        with one_thread():
            scene = Scene(Path(directory))
        grpc_port = free_port()
        questions = {B: scene.questions(B) for B in SIZES}
        with (
            scene.scorer(cores.scorer, grpc_port) as port,
            ProcessPoolExecutor(
                1, get_context("spawn"), initializer=keep_to, initargs=(cores.generator,)
            ) as asker,
        ):
            urls = f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{grpc_port}"
            taken = asker.submit(measure, urls, questions, load).result()
    return composed(load, taken)


def measure(
    urls: tuple[str, str], questions: dict[int, list[Question]], load: Load
) -> dict[tuple[Way, int], Taken]:
    """Ask in all ways, in turn."""
    taken = {(way, B): Taken([], []) for B in SIZES for way in WAYS}
    with asyncio.Runner() as runner, ExitStack() as open_clients:
        ask = {way: _asking(way, urls, runner, open_clients) for way in WAYS}
        for number in range(-1, load.rounds):  # the first one warms up
            for (way, B), of_way in taken.items():
                gc.collect()
                latency, cpu_s = ask[way](questions[B], load.seconds)
                if number >= 0:
                    of_way.latency += latency
                    of_way.cpu_us.append(1e6 * cpu_s / len(latency))
    return taken


Asking = Callable[[list[Question], float], tuple[list[float], float]]
"""Asks for so many seconds: the latency of each request and the processor time of all, s."""


def _asking(
    way: Way, urls: tuple[str, str], runner: asyncio.Runner, open_clients: ExitStack
) -> Asking:
    """What asks in a way, by a client that stays open."""
    url = urls[way.protocol == "grpc"]
    if way.blocking:
        kind = RankClient if way.library == "ours" else HttpxRankClient
        client = open_clients.enter_context(kind(url, protocol=way.protocol))
        return lambda questions, seconds: _ask(client, way, questions, seconds)
    async_kind = AsyncRankClient if way.library == "ours" else AsyncHttpxRankClient
    async_client = async_kind(url, protocol=way.protocol)
    open_clients.callback(lambda: runner.run(async_client.close()))
    return lambda questions, seconds: runner.run(_ask_async(async_client, way, questions, seconds))


def _ask(
    client: RankClient, way: Way, questions: list[Question], seconds: float
) -> tuple[list[float], float]:
    latency: list[float] = []
    began, cpu_s = time.perf_counter(), time.process_time()
    for user, keys, ids in cycle(questions):
        asked = time.perf_counter()
        if way.protocol == "json":
            client.rank(user, ids)
        else:
            client.score([user], keys[np.newaxis])
        done = time.perf_counter()
        latency.append(done - asked)
        if done - began > seconds:
            break
    return latency, time.process_time() - cpu_s


async def _ask_async(
    client: AsyncRankClient, way: Way, questions: list[Question], seconds: float
) -> tuple[list[float], float]:
    latency: list[float] = []
    began, cpu_s = time.perf_counter(), time.process_time()
    for user, keys, ids in cycle(questions):
        asked = time.perf_counter()
        if way.protocol == "json":
            await client.rank(user, ids)
        else:
            await client.score([user], keys[np.newaxis])
        done = time.perf_counter()
        latency.append(done - asked)
        if done - began > seconds:
            break
    return latency, time.process_time() - cpu_s


class HttpxRankClient(RankClient):
    """Ours, but for what carries its bodies."""

    def _opened(
        self,
        address: Address,
        shown: dict[str, str],  # noqa: ARG002
        tls: Tls,  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002
    ) -> HttpxWay:
        return HttpxWay(address)


class AsyncHttpxRankClient(AsyncRankClient):
    """The same with asyncio."""

    def _opened(
        self,
        address: Address,
        shown: dict[str, str],  # noqa: ARG002
        tls: Tls,  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002
    ) -> AsyncHttpxWay:
        return AsyncHttpxWay(address)


class HttpxWay:
    """A way over httpx."""

    def __init__(self, address: Address) -> None:
        self._client = httpx.Client(base_url=address.url, trust_env=False)

    def exchange(self, call: Call, deadline: float) -> Reply:
        return _reply(self._client.post(call.path, **_told(call, deadline)))

    def close(self) -> None:
        self._client.close()


class AsyncHttpxWay:
    """The same with asyncio."""

    def __init__(self, address: Address) -> None:
        self._client = httpx.AsyncClient(base_url=address.url, trust_env=False)

    async def exchange(self, call: Call, deadline: float) -> Reply:
        return _reply(await self._client.post(call.path, **_told(call, deadline)))

    async def close(self) -> None:
        await self._client.aclose()


def _told(call: Call, deadline: float) -> dict[str, Any]:
    left_s = left(deadline)
    headers = {**call.headers, TIME_LEFT: str(int(1000 * left_s)), "accept-encoding": "identity"}
    return {"content": call.body, "headers": headers, "timeout": left_s}


def _reply(response: httpx.Response) -> Reply:
    length = response.headers.get(HEADER_LENGTH)
    return Reply(
        response.status_code,
        response.content,
        header_length=None if length is None else int(length),
    )


def composed(load: Load, taken: dict[tuple[Way, int], Taken]) -> dict[str, Any]:
    """The bench's JSON object."""
    results: list[dict[str, Any]] = []
    rows: dict[int, dict[str, list[float]]] = {B: {} for B in SIZES}
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for (way, B), of_way in taken.items():
        name, cpu_us = way.at(B), round(median(of_way.cpu_us), 1)
        p50_ms, p99_ms = of_way.quantile_ms(0.5), of_way.quantile_ms(0.99)
        results.append({"name": name, "candidates": B, "value": cpu_us, "unit": "CPU µs"})
        rows[B][name] = [p50_ms, p99_ms]
        of = f"{way.library}_{way.protocol}_{way.kind}"
        figures[f"{of}_cpu_us_{B}"] = cpu_us
        figures[f"{of}_p50_ms_{B}"] = p50_ms
        figures[f"{of}_p99_ms_{B}"] = p99_ms
        if way.library == "httpx":
            ours = taken[way._replace(library="ours"), B]
            # Pair by pair, since the machine's speed drifts between rounds.
            pairs = zip(of_way.cpu_us, ours.cpu_us, strict=True)
            ratios[name] = round(median(peer / own for peer, own in pairs), 2)
    return {
        "machine": machine(),
        "rounds": load.rounds,
        "peers": ["httpx"],
        "results": results,
        "ratios": ratios,
        "tables": [
            {"title": f"B = {B:,}, latency", "columns": ["p50 ms", "p99 ms"], "rows": of_size}
            for B, of_size in rows.items()
        ],
        "figures": figures,
    }
