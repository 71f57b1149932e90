"""One run: a scorer, so many hostile connections, and whether it is as well as before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio

from infra.processes import end_guard, start_guard
from infra.settings import BundleSettings, LogSettings, ScorerSettings, Settings, StoreSettings
from lifelong.demo.processes import free_port
from scorer.grpc import open_inference_pb2 as pb
from scorer.http.connections import HEAD_TIMEOUT_S
from tests.bundles import tiny_bundle
from tests.configuration import toml
from tests.fuzz import answers, bodies, http1, http2
from tests.fuzz import grpc as of_grpc
from tests.fuzz.cases import Case, Port
from tests.scorer.conftest import add_behavior
from tests.scorer.running import ROOT, get, until
from tests.soak.watching import descriptors, resident

HOST: Final = "127.0.0.1"
AT_ONCE: Final = 48
"""Connections open at once."""

BATCH: Final = 200
"""Hostile connections after which good requests are asked."""

ANSWER_S: Final = 15.0
"""Longest time until what is whole is answered, or its connection closed, on a busy machine."""

GOOD_S: Final = 60.0
"""Longest time until a good request is answered over both protocols: while others are asked it is
refused for load, now and then, and asked again.
"""

QUIET_S: Final = 0.02
"""How long what is not whole is waited for, and what comes behind an answer."""

DEADLINE_S: Final = 1.0
IDLE_S: Final = 3.0

HELD_S: Final = HEAD_TIMEOUT_S + DEADLINE_S + IDLE_S + 15.0
"""Longest time in which a connection that goes no further is closed."""

HELD_EACH: Final = 250
"""One connection of so many is held until the scorer closes it; some send drop by drop."""

GROWTH: Final = 24 << 20
"""Most that the scorer's memory may have grown since it was warm."""

KINDS: Final = (*http1.KINDS, *http2.KINDS, *of_grpc.KINDS)
SHOWN: Final = 40

AGAIN: Final = frozenset(
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    }
)
"""Codes after which a good client of gRPC asks again: what was asked before may be computed still,
and a call whose path is no text ends grpcio's server, in whose place another one is started.
"""


@dataclass
class Run:
    """What came of a run."""

    seed: int
    first: int
    requests: int = 0
    held: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    """Statuses, and codes of gRPC."""
    good: int = 0
    """Good requests that were answered in between."""
    memory: list[int] = field(default_factory=list)
    """Bytes resident: at the start, when warm, and at the end."""
    memory_now: int = 0
    descriptors: list[int] = field(default_factory=list)
    """Open at the start and at the end."""
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Take note of something wrong."""
        if len(self.wrong) < SHOWN:
            self.wrong.append(what)

    def row(self) -> dict[str, Any]:
        """The run for the report."""
        return {
            "seed": self.seed,
            "requests": self.requests,
            "held": self.held,
            "seconds": round(self.seconds, 1),
            "a_second": round(self.requests / max(self.seconds, 1e-9)),
            "kinds": dict(sorted(self.kinds.items())),
            "told": dict(self.told.most_common()),
            "good": self.good,
            "memory": self.memory,
            "descriptors": self.descriptors,
            "wrong": self.wrong,
        }


def made(seed: int, number: int) -> Case:
    """The case of a number; the same whatever came before it."""
    chance = random.Random(f"{seed} {number}")
    return chance.choice(KINDS)(chance)


class Target:
    """A scorer to be attacked, in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "scorer.log"
        bundle = directory / "bundle"
        self.settings = Settings(
            store=StoreSettings(url=f"lmdb://{directory / 'store'}"),
            bundle=BundleSettings(path=bundle if bundle.exists() else tiny_bundle(bundle)),
            log=LogSettings(format="json"),
            scorer=ScorerSettings(
                port=free_port(),
                grpc_port=free_port(),
                deadline_s=DEADLINE_S,
                idle_timeout_s=IDLE_S,
                lame_duck_s=0,
            ),
        )
        self.pid = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The scorer, ready; it is ended with the block."""
        add_behavior(self.settings, "u")
        config = self._directory / "lifelong.toml"
        config.write_text(toml(self.settings))
        arguments = ["-m", "lifelong", "scorer", f"--config={config}"]
        command = [sys.executable, "-X", "faulthandler", *arguments]
        with self._log.open("wb") as log:
            self._guard = start_guard(ROOT, command, log.fileno())
        try:
            assert self._guard.stdout is not None
            self.pid = int(self._guard.stdout.readline())
            until(lambda: get(self.settings, "/v2/health/ready")[0] == 200)
            yield
        finally:
            end_guard(self._guard)

    def stop(self) -> int:
        """End it as an operator would; its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self._guard.wait(60)
        except subprocess.TimeoutExpired:
            return -1

    @property
    def alive(self) -> bool:
        return self._guard.poll() is None

    def trouble_in_log(self) -> list[str]:
        """Lines that tell of a mistake of the scorer's."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                found.append(line[:1000])
                continue
            if "exception" in said or said["level"] in {"error", "critical"}:
                found.append(str(said)[:3000])
        return found


def run_seed(
    seed: int,
    requests: int,
    directory: Path,
    *,
    first: int = 0,
    warm: int = 10_000,
    holds: bool = True,
    port: Port | None = None,
    told: Callable[[Run], None] = lambda _: None,
) -> Run:
    """Attack a scorer with so many connections, and look how it is.

    Args:
        first: number of the first case.
        warm: cases after which the scorer is to need no more memory.
        holds: whether some connections are held until the scorer closes them, which takes a while.
        port: whether one is attacked alone; None: both are.
        told: called now and then.
    """
    run = Run(seed, first)
    target = Target(directory)
    began = time.monotonic()
    with target.running():
        asyncio.run(
            _Attack(target, run, told, port).go_on(requests, min(warm, requests), holds=holds)
        )
        if not target.alive:
            run.note("the scorer has ended")
        elif (code := target.stop()) != 0:
            run.note(f"the scorer ended with {code}")
    run.seconds = time.monotonic() - began
    for line in target.trouble_in_log()[:SHOWN]:
        run.note(f"in the log: {line}")
    return run


class _Attack:
    def __init__(
        self, target: Target, run: Run, told: Callable[[Run], None], port: Port | None
    ) -> None:
        self._only = port
        self._target = target
        self._run = run
        self._told = told
        scorer = target.settings.scorer
        self._ports = {"http": scorer.port, "grpc": scorer.grpc_port}
        self._free = asyncio.Semaphore(AT_ONCE)
        self._ctrs: list[object] = []

    async def go_on(self, requests: int, warm: int, *, holds: bool) -> None:
        run, pid = self._run, self._target.pid
        await self._ask_well(0)
        await asyncio.sleep(0.5)
        run.memory.append(resident(pid))
        run.descriptors.append(descriptors(pid))
        held: list[asyncio.Task[None]] = []
        ended = asyncio.Event()
        # Ctrl-C ends it early, with all that is checked at the end.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, ended.set)
        for start in range(run.first, run.first + requests, BATCH):
            numbers = range(start, min(start + BATCH, run.first + requests))
            await asyncio.gather(*(self._attack(number) for number in numbers))
            held += [
                asyncio.create_task(self._hold(number))
                for number in numbers
                if holds and not number % HELD_EACH
            ]
            await self._ask_well(numbers[-1])
            if run.requests >= warm and len(run.memory) == 1:
                run.memory.append(resident(pid))
            run.memory_now = resident(pid)
            self._told(run)
            if ended.is_set():
                break
        await asyncio.gather(*held)
        await self._settle()
        run.memory += [resident(pid)] * (3 - len(run.memory))
        if run.memory[-1] - run.memory[1] > GROWTH:
            run.note(f"memory grew from {run.memory[1]:,} to {run.memory[-1]:,} bytes")

    async def _settle(self) -> None:
        """Wait until all that was opened is closed."""
        run = self._run
        until = time.monotonic() + HELD_S
        while (now := descriptors(self._target.pid)) > run.descriptors[0] + 2:
            if time.monotonic() > until:
                run.note(f"{now} descriptors open, {run.descriptors[0]} at the start")
                break
            await asyncio.sleep(0.2)
        run.descriptors.append(now)

    async def _attack(self, number: int) -> None:
        case = made(self._run.seed, number)
        if self._only not in {None, case.port}:
            return
        self._run.requests += 1
        self._run.kinds[case.kind] += 1
        async with self._free:
            try:
                data, closed = await self._exchange(case, random.Random(number))
            except OSError as error:
                self._run.note(f"case {number}, {case.kind}: cannot connect: {error}")
                return
        self._look(number, case, data)
        if case.whole and not data and not closed:
            self._run.note(f"case {number}, {case.kind}: neither answered nor closed")

    async def _exchange(self, case: Case, chance: random.Random) -> tuple[bytes, bool]:
        """What came back, and whether the scorer closed the connection."""
        reader, writer = await self._connected(case)
        received, part, closed = b"", b"", False
        try:
            with contextlib.suppress(ConnectionError):
                await self._send(writer, case.data, chance)
            wait_s = ANSWER_S if case.whole else QUIET_S * chance.choice((1, 1, 5))
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        part = await reader.read(1 << 20)
                except TimeoutError:
                    break
                except ConnectionError:
                    part = b""
                received += part
                closed = not part
                if closed or len(received) > 1 << 24:
                    break
                wait_s = QUIET_S
        finally:
            writer.transport.abort()
        return received, closed

    async def _connected(self, case: Case) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection. A server of gRPC that has ended is missing for a moment."""
        until = time.monotonic() + (ANSWER_S if case.port == "grpc" else 0)
        while True:
            try:
                return await asyncio.open_connection(HOST, self._ports[case.port])
            except OSError:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(0.05)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, chance: random.Random) -> None:
        for part in _pieces(data, chance):
            writer.write(part)
            async with asyncio.timeout(ANSWER_S):
                await writer.drain()
            await asyncio.sleep(0)
        if chance.random() < 0.05:
            with contextlib.suppress(OSError):  # closed by now
                writer.write_eof()

    async def _hold(self, number: int) -> None:
        """Begin what a case begins, go no further or very slowly, and wait until it is closed."""
        case = made(self._run.seed, number)
        if self._only not in {None, case.port}:
            return
        chance = random.Random(number)
        self._run.held += 1
        sizes = (0, 1, 20, len(case.data) // 2, len(case.data))
        # A call of gRPC whose message does not come lasts as long as its client wants.
        data = case.data[: chance.choice(sizes[:3] if case.port == "grpc" else sizes)]
        rest = b"" if case.port == "grpc" else case.data[len(data) :]
        try:
            reader, writer = await self._connected(case)
        except OSError as error:
            self._run.note(f"case {number}, {case.kind}: cannot connect: {error}")
            return
        began = time.monotonic()
        slow = asyncio.create_task(_drop_by_drop(writer, rest, chance))
        received = b""
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                async with asyncio.timeout(HELD_S):
                    while part := await reader.read(65_536):
                        received += part
        except TimeoutError:
            self._run.note(
                f"case {number}, {case.kind}: held open for {time.monotonic() - began:.0f} s after"
                f" {data[:200]!r}, {received[-200:]!r}"
            )
        finally:
            slow.cancel()
            writer.transport.abort()
        self._look(number, case, received)

    def _look(self, number: int, case: Case, data: bytes) -> None:
        told = answers.read(data)
        self._run.told.update(told.words)
        for fault in told.faults:
            self._run.note(f"case {number}, {case.kind}: {fault}; sent {case.data[:300]!r}")

    async def _ask_well(self, number: int) -> None:
        """Ask what any client may, and compare it with what was answered at first."""
        try:
            async with asyncio.timeout(GOOD_S):
                told = [await self._ask_http(), await self._ask_grpc()]
        except (TimeoutError, OSError, ValueError, grpc.aio.AioRpcError) as error:
            self._run.note(f"after case {number} a good request failed: {error!r}"[:600])
            return
        self._ctrs = self._ctrs or told
        if told != self._ctrs:
            self._run.note(f"after case {number} a good request got {told}, not {self._ctrs}")
        self._run.good += len(told)

    async def _ask_http(self) -> object:
        while True:
            reader, writer = await asyncio.open_connection(HOST, self._ports["http"])
            try:
                writer.write(http1.request(bodies.RANK, b"/v1/rank", b"POST", b"Connection: close"))
                data = await reader.read(-1)
            finally:
                writer.close()
            if b" 429 " not in data[:20] and b" 503 " not in data[:20]:
                return json.loads(data.partition(b"\r\n\r\n")[2])["items"]
            await asyncio.sleep(0.2)  # what was asked before may be computed still

    async def _ask_grpc(self) -> object:
        target = f"{HOST}:{self._ports['grpc']}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            request = pb.ModelInferRequest.FromString(of_grpc.good())
            while True:
                try:
                    answer = await infer(request)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in AGAIN:
                        raise
                    await asyncio.sleep(0.2)
                else:
                    return [list(output.shape) for output in answer.outputs]


def _pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    cut = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 0, 1, 4))))
    for start, end in zip([0, *cut], [*cut, len(data)], strict=True):
        yield data[start:end]


async def _drop_by_drop(writer: asyncio.StreamWriter, rest: bytes, chance: random.Random) -> None:
    if chance.random() < 0.5:
        return
    with contextlib.suppress(ConnectionError):
        for place in range(len(rest)):
            await asyncio.sleep(0.4)
            writer.write(rest[place : place + 1])
            await writer.drain()
