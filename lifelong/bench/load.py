"""``lifelong bench load``: what a scorer answers in time, offered less and more than it can do.

One serving process on a core of its own, and on another one that asks it, for users of 1,000
behaviors whose interests are stored in LMDB, by keys over the Open Inference Protocol. First what
it can do (a few clients, each asking again once answered), then shares of that, offered at random
times drawn beforehand whether answers come or not (`lifelong.arrivals`): how many rankings a
second come within a deadline that the requests name, and how long those take that are not refused.

At a quiet server, beside it: DIN-L in torch behind FastAPI, on one thread (`fastapi_peer`).
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from extractor.systems import open_system
from infra.arrays import U64
from infra.behaviors import BEHAVIOR, Source
from infra.store import Append, Group, InterestWrite, StoreOptions
from infra.stores.lmdb import LmdbStore
from lifelong.arrivals import Answers, drawn
from lifelong.bench.arrivals import Generator
from lifelong.bench.requests import SERVED, START_MS, Shop, User
from lifelong.bench.score import ITEMS, NETWORK
from lifelong.demo.processes import ServiceProcess, answers, free_port
from lifelong.machine import machine
from models.bundle import Bundle
from models.devices import one_thread

L: Final = 1000
USERS: Final = 32
SYSTEM: Final = "ENCODE"
CLIENTS: Final = 4
"""As many as it takes to keep one process busy."""
READERS: Final = 24
"""Clients of a scorer whose store is away for milliseconds: somebody must be there to be ranked."""
AWAY_MS: Final = 5
SOURCE: Final = Source(1, 1)
READY_S: Final = 120.0
WARM_S: Final = 0.1
"""Of each way, before it counts."""
SETTLED_S: Final = 0.5
"""Of a load, what does not count: until then the scorer has seen that it is one."""


class Size(NamedTuple):
    """Candidates of a request, and the time in which an answer is of use."""

    B: int
    deadline_s: float


SIZES: Final = (Size(100, 0.05), Size(3000, 0.1))


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    quiet_s: float
    """Asking one after another, a way and round."""
    capacity_s: float
    offered_s: float
    times: tuple[float, ...]
    """What is offered, as shares of what it can do."""


FULL: Final = Load(7, 2.0, 4.0, 8.0, (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0))
QUICK: Final = Load(2, 0.4, 1.0, 1.25, (1.0, 1.5, 4.0))


class Cores(NamedTuple):
    """Which core is whose; None: there is but one."""

    scorer: int | None
    generator: int | None

    @classmethod
    def here(cls) -> Cores:
        """The last core for whoever asks, the one before for whoever answers."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[-2], cores[-1]) if len(cores) > 1 else cls(None, None)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object."""
    load, cores = QUICK if quick else FULL, Cores.here()
    with tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory:
        place = Path(directory)
        with one_thread():
            scene = Scene(place)
        with closing(Generator(cores.generator)) as generator, ExitStack() as servers:
            slow = {
                ms: servers.enter_context(scene.slow_scorer(cores.scorer, ms))
                for ms in (0, AWAY_MS)
            }
            peer_ready = servers.enter_context(scene.fastapi(cores.scorer))
            port = servers.enter_context(scene.scorer(cores.scorer))
            peer = peer_ready()
            quiet = measure_quiet(generator, scene, port, peer, load)
            offered = {size: measure_offered(generator, scene, port, size, load) for size in SIZES}
            away = measure_away(generator, scene, slow, load)
    return composed(load, quiet, offered, away)


class Scene:
    """A store with users, the bundle, and the requests for them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        served = {SYSTEM: SERVED[SYSTEM]}
        self._shop = Shop(ITEMS, NETWORK, served=served, plain=False, keep=place)
        self.bundle = place / SYSTEM
        self.store = place / "store"
        self._users = {f"user-{number}": self._shop.user(L) for number in range(USERS)}
        write_users(self.store, self._shop.bundles[SYSTEM], self._users)

    def requests(self, kind: str, size: Size, port: int, *, deadline: bool = True) -> list[bytes]:
        """One request a user, as bytes."""
        make = {"v2": v2_request, "v1": v1_request, "fastapi": v1_request}[kind]
        path = {"v2": f"/v2/models/{self._model}/infer", "v1": "/v1/rank", "fastapi": "/rank"}[kind]
        timeout_ms = round(1000 * size.deadline_s) if deadline else None
        requests = []
        for user, keys, ids in self.questions(size.B):
            body, headers = make(user, keys, ids)
            if timeout_ms is not None:
                headers["x-request-timeout-ms"] = str(timeout_ms)
            requests.append(http_request(path, port, body, headers))
        return requests

    def questions(self, B: int) -> list[tuple[str, U64, list[str]]]:
        """One a user: whom to rank, and the candidates by keys u64[B] and by ids."""
        drawn = ((user, self._shop.candidates(B)) for user in self._users)
        return [(user, keys, self._shop.ids(keys)) for user, keys in drawn]

    @contextmanager
    def scorer(self, core: int | None, grpc_port: int = 0) -> Iterator[int]:
        """``lifelong scorer``; its port."""
        port = free_port()
        arguments = [
            *("scorer", "--port", str(port), "--store", f"lmdb://{self.store}"),
            *("--bundle", str(self.bundle), "--set", "scorer.sampled=0"),
            *("--set", f"scorer.grpc_port={grpc_port}"),
        ]
        url = f"http://127.0.0.1:{port}/v2/health/ready"
        with ServiceProcess("scorer", arguments, self._place / "scorer.log", url) as process:
            process.wait_ready(READY_S)
            keep_all_to(process.pid, core)
            yield port

    @contextmanager
    def slow_scorer(self, core: int | None, away_ms: float) -> Iterator[Callable[[], int]]:
        """A scorer whose store is away for so long, which starts meanwhile: waits, for its port."""

        def ready() -> int:
            until_ready(f"http://127.0.0.1:{port}/v2/health/ready")
            keep_all_to(process.pid, core)
            return port

        port = free_port()
        arguments = [str(self.store), str(self.bundle), str(port), str(away_ms)]
        with subprocess.Popen(
            [sys.executable, "-m", "lifelong.bench.slow_store", *arguments],
        ) as process:
            try:
                yield ready
            finally:
                process.kill()

    @contextmanager
    def fastapi(self, core: int | None) -> Iterator[Callable[[], int]]:
        """The peer, which starts meanwhile: waits, for its port."""
        from lifelong.bench.fastapi_peer import serve

        def ready() -> int:
            until_ready(f"http://127.0.0.1:{port}/ready")
            return port

        port = free_port()
        users = {name: self._shop.din_l_in_torch(user) for name, user in self._users.items()}
        # Forked, so that it need not export the network again.
        process = multiprocessing.get_context("fork").Process(
            target=serve, args=(users, port, core), daemon=True
        )
        process.start()
        try:
            yield ready
        finally:
            process.kill()
            process.join()

    @property
    def _model(self) -> str:
        return self._shop.bundles[SYSTEM].manifest.name


@dataclass(slots=True)
class Quiet:
    """Latencies of a server that has nothing else to do."""

    p50_ms: dict[tuple[str, int], list[float]]
    """By way and B, a value a round."""
    stages_ms: list[float]
    """Of requests of the first size by keys: store, features and model, a value a round."""
    mean_ms: list[float]
    """Of the same, as their client sees them."""


def measure_quiet(generator: Generator, scene: Scene, port: int, peer: int, load: Load) -> Quiet:
    """Ask one after another, all ways in turn."""
    ways = [("v2", SIZES[0]), ("v2", SIZES[1]), ("v1", SIZES[1])]
    ways += [("fastapi", SIZES[0]), ("fastapi", SIZES[1])]
    ports = {"v2": port, "v1": port, "fastapi": peer}
    requests = {way: scene.requests(*way, ports[way[0]], deadline=False) for way in ways}
    quiet = Quiet({(kind, size.B): [] for kind, size in ways}, [], [])
    for number in range(-1, load.rounds):  # the first one warms up
        for kind, size in ways:
            before = stages_s(port)
            seconds = WARM_S if number < 0 else load.quiet_s
            answers = generator.ask(ports[kind], requests[kind, size], 1, seconds)
            after = stages_s(port)
            if number < 0:
                continue
            quiet.p50_ms[kind, size.B].append(answers.quantile_ms(0.5))
            if (kind, size) == ways[0]:
                spent = after[0] - before[0], after[1] - before[1]
                quiet.stages_ms.append(1000 * spent[0] / spent[1])
                quiet.mean_ms.append(1000 * float(np.mean(answers.latency)))
    return quiet


@dataclass(slots=True)
class Offered:
    """What became of loads of one size."""

    capacity: float
    """Rankings a second that it can do."""
    unloaded_p99_ms: float
    loads: dict[float, Answers]
    """By share of the capacity."""


def measure_offered(
    generator: Generator, scene: Scene, port: int, size: Size, load: Load
) -> Offered:
    """Find out what can be done, and offer shares of it."""
    requests = scene.requests("v2", size, port)
    patient = scene.requests("v2", size, port, deadline=False)
    unloaded = generator.ask(port, patient, 1, load.capacity_s)
    capacity = generator.ask(port, patient, CLIENTS, load.capacity_s).goodput(np.inf)
    loads = {}
    for number, times in enumerate(load.times):
        seconds = load.offered_s + SETTLED_S
        due = drawn(times * capacity, seconds, seed=number)
        loads[times] = generator.offer(port, requests, due, seconds).after(SETTLED_S)
        time.sleep(0.3)  # whoever was late is gone
    return Offered(capacity, unloaded.quantile_ms(0.99), loads)


def measure_away(
    generator: Generator, scene: Scene, scorers: Mapping[int, Callable[[], int]], load: Load
) -> dict[str, float]:
    """Rankings a second of B = 100 with a store within the process, and with one that is away."""
    rates = {}
    for away_ms, ready in scorers.items():
        port = ready()
        requests = scene.requests("v2", SIZES[0], port, deadline=False)
        generator.ask(port, requests, READERS, load.quiet_s)
        answers = generator.ask(port, requests, READERS, load.capacity_s)
        rates[f"{away_ms} ms away"] = answers.goodput(np.inf)
    return rates


def composed(
    load: Load, quiet: Quiet, offered: dict[Size, Offered], away: dict[str, float]
) -> dict[str, Any]:
    """The bench's JSON object."""

    def over(ours: str, B: int) -> float:
        pairs = zip(quiet.p50_ms["fastapi", B], quiet.p50_ms[ours, B], strict=True)
        return round(median(peer / own for peer, own in pairs), 2)

    small, large = (size.B for size in SIZES)
    shares = zip(quiet.stages_ms, quiet.mean_ms, strict=True)
    figures = {
        "fastapi_over_v2_3000": over("v2", large),
        "fastapi_over_v1_3000": over("v1", large),
        "fastapi_over_v2_100": over("v2", small),
        "overhead_share_v2_100": round(median(1 - stages / mean for stages, mean in shares), 3),
    }
    results: list[dict[str, Any]] = []
    tables: list[dict[str, Any]] = []
    for size, of_size in offered.items():
        good = {times: a.goodput(size.deadline_s) for times, a in of_size.loads.items()}
        most = max(good.values())
        figures[f"goodput_share_1_5x_{size.B}"] = round(good[1.5] / most, 3)
        figures[f"goodput_share_4x_{size.B}"] = round(good[4.0] / most, 3)
        figures[f"p99_admitted_over_unloaded_1_5x_{size.B}"] = round(
            of_size.loads[1.5].quantile_ms(0.99) / of_size.unloaded_p99_ms, 2
        )
        for times, a in of_size.loads.items():
            results.append(
                {
                    "name": f"B = {size.B:,}, {times:g} x offered",
                    "candidates": size.B,
                    "times": times,
                    "value": round(good[times], 1),
                    "unit": "in time/s",
                    "offered": round(a.rate, 1),
                    "p50_ms": round(a.quantile_ms(0.5), 3),
                    "p99_ms": round(a.quantile_ms(0.99), 3),
                    "refused": round(a.share(429), 3),
                    "given_up": round(a.share(503), 3),
                }
            )
        tables.append(
            {
                "title": f"B = {size.B:,}: it can do {of_size.capacity:,.0f}/s; alone a request's"
                f" p99 is {of_size.unloaded_p99_ms:.2f} ms",
                "columns": ["offered/s", "in time/s", "p50 ms", "p99 ms", "refused %"],
                "rows": {
                    f"{row['times']:g} x": [
                        *(row["offered"], row["value"], row["p50_ms"], row["p99_ms"]),
                        100 * row["refused"],
                    ]
                    for row in results
                    if row["candidates"] == size.B
                },
            }
        )
    tables.append(
        {
            "title": "At a quiet server, ms",
            "columns": [f"B = {small:,}", f"B = {large:,}"],
            "rows": {
                name: [median(quiet.p50_ms.get((name, B), [0.0])) for B in (small, large)]
                for name in ("v2", "v1", "fastapi")
            },
        }
    )
    tables.append(
        {
            "title": f"B = {small:,}, rankings/s, by where the store is",
            "columns": ["rankings/s"],
            "rows": {name: [rate] for name, rate in away.items()},
        }
    )
    return {
        "machine": machine(),
        "rounds": load.rounds,
        "peers": ["FastAPI, DIN-L in torch"],
        "results": results,
        "ratios": {},
        "tables": tables,
        "loads": [
            {
                "B": size.B,
                "capacity": round(of_size.capacity, 1),
                "deadline_ms": 1000 * size.deadline_s,
                "rows": [row for row in results if row["candidates"] == size.B],
            }
            for size, of_size in offered.items()
        ],
        "away": {name: round(rate, 1) for name, rate in away.items()},
        "figures": figures,
    }


def write_users(path: Path, bundle: Bundle, users: dict[str, User]) -> None:
    """A store with users, each with a state that all but the newest behaviors are in."""
    system = open_system(bundle)
    system.warm()
    with closing(LmdbStore(path, StoreOptions(length=2 * L), sync=False)) as store:
        for name, user in users.items():
            covered = user.covered.version.count
            for start, stop in ((0, covered), (covered, len(user.behaviors))):
                packed = user.behaviors[start:stop].view(f"V{BEHAVIOR.itemsize}").tolist()
                append = Append(name, packed, [0] * len(packed), list(range(start, stop)))
                store.append([Group(SOURCE, [append])], START_MS)
                if stop == covered:
                    (sequence,) = store.sequences([name])
                    assert sequence is not None
                    state = system.extract(sequence)
                    payload = system.layout.encode(state)
                    write = InterestWrite(name, system.digest, state.version, payload)
                    store.put_interests([write], START_MS)


def v2_request(user: str, keys: U64, ids: Sequence[str]) -> tuple[bytes, dict[str, str]]:  # noqa: ARG001
    """Body and headers of a request by keys, all in bytes."""
    head = msgspec.json.encode(
        {
            "inputs": [
                {"name": "user", "shape": [1], "datatype": "BYTES", "data": [user]},
                {
                    "name": "candidates",
                    "shape": [len(keys)],
                    "datatype": "UINT64",
                    "parameters": {"binary_data_size": keys.nbytes},
                },
            ],
            "outputs": [{"name": "ctr", "parameters": {"binary_data": True}}],
        }
    )
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return head + keys.tobytes(), headers


def v1_request(user: str, keys: U64, ids: Sequence[str]) -> tuple[bytes, dict[str, str]]:  # noqa: ARG001
    """Body and headers of a request by ids, in JSON."""
    body = msgspec.json.encode({"user": user, "candidates": list(ids)})
    return body, {"content-type": "application/json"}


def http_request(path: str, port: int, body: bytes, headers: dict[str, str]) -> bytes:
    """A request as it is sent."""
    told = {"host": f"127.0.0.1:{port}", **headers, "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def stages_s(port: int) -> tuple[float, float]:
    """Seconds spent in all stages of rankings so far, and how many rankings there were."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    of_stages = [line for line in lines if line.startswith("lifelong_scorer_stage_seconds")]
    spent = sum(float(line.split()[-1]) for line in of_stages if "_sum{" in line)
    counts = [float(line.split()[-1]) for line in of_stages if "_count{" in line]
    return spent, max(counts, default=0.0)


def until_ready(url: str) -> None:
    """Return once it answers."""
    deadline = time.monotonic() + READY_S
    while not answers(url):
        if time.monotonic() > deadline:
            raise TimeoutError(url)
        time.sleep(0.1)


def keep_all_to(pid: int, core: int | None) -> None:
    """Run all threads that a process has on one core."""
    if core is None:
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            os.sched_setaffinity(int(task.name), {core})
