"""``lifelong bench score``: what a ranking request costs: the three systems, DIN-L, plain graphs.

What is timed is what a scorer does after it has read its store: candidates looked up in the bundle,
the inputs of the model made of the user's state and newer behaviors, and the model run, on one
core. DIN-L and AvgPooling are ours too, under the same settings; DIN-L in torch, and the graphs
that SDIM and TWIN export, are what one would serve without this project. All alternate in rounds,
for the same users and candidates. Microseconds of processor time, medians over rounds; ratios are
taken round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, NamedTuple

from infra.arrays import U64
from lifelong.bench.requests import SERVED, Request, Shop, User
from lifelong.machine import machine
from models.devices import one_thread
from models.network import NetworkConfig

LENGTHS: Final = (1000, 10_000)
SIZES: Final = (3000, 500, 100)
LARGEST: Final = SIZES[0]
"""Candidates, B; peers and stages are measured at the first."""

ITEMS: Final = 50_000
NETWORK: Final = NetworkConfig(d=32, hidden=(200, 80))

DIN_L: Final = "DIN-L"
AVERAGE: Final = "AvgPooling"
TORCH: Final = "DIN-L in torch"
PLAIN_SDIM: Final = "SDIM's plain graph"
PLAIN_TWIN: Final = "TWIN's plain graph"
PEERS: Final = {TORCH: "ENCODE", PLAIN_SDIM: "SDIM", PLAIN_TWIN: "TWIN"}
"""The peers, measured at the shortest length alone, and what each is held against. ENCODE's plain
graph is what is served."""

MOST_PASSES: Final = 10
"""Requests of one user and round: as many as take about as long as one of the largest."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    users: int


FULL: Final = Load(rounds=15, users=4)
QUICK: Final = Load(rounds=5, users=2)


class Row(NamedTuple):
    """One thing that is measured."""

    name: str
    L: int
    B: int

    def __str__(self) -> str:
        return f"{self.name}, L = {self.L:,}, B = {self.B:,}"


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds of a request, a value a round."""

    lookup: list[float] = field(default_factory=list)
    features: list[float] = field(default_factory=list)
    """Apart, and in `feed` once more."""
    feed: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        """Of the requests."""
        return [sum(parts) for parts in zip(self.lookup, self.feed, self.model, strict=True)]

    def stages(self) -> dict[str, float]:
        """Medians by stage; they add up to about the whole's."""
        lookup, features, feed, model = (
            median(taken) for taken in (self.lookup, self.features, self.feed, self.model)
        )
        stages = {
            "candidates looked up": lookup,
            "features": min(features, feed),
            "interests": max(feed - features, 0.0),
            "model": model,
        }
        return {name: round(spent, 1) for name, spent in stages.items()}

    def over(self, other: Times) -> float:
        """How many times as long as the other it took: the median of each round's."""
        return round(median(a / b for a, b in zip(self.whole, other.whole, strict=True)), 2)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object. Rows with "stages" say where the time goes."""
    load = QUICK if quick else FULL
    with one_thread():
        shop = Shop(ITEMS, NETWORK)
        times = measure(shop, load, LENGTHS, SIZES)
    short, long = LENGTHS

    def over(above: tuple[str, int], below: tuple[str, int]) -> float:
        return times[Row(*above, LARGEST)].over(times[Row(*below, LARGEST)])

    return {
        "machine": machine(),
        "rounds": load.rounds,
        "peers": [str(row) for row in times if row.name in PEERS],
        "results": [_described(row, taken) for row, taken in times.items()],
        "ratios": _ratios(times),
        "figures": {
            "din_l_over_encode_1000": over((DIN_L, short), ("ENCODE", short)),
            "din_l_over_encode_10000": over((DIN_L, long), ("ENCODE", long)),
            "sdim_over_encode_1000": over(("SDIM", short), ("ENCODE", short)),
            "graph_over_twin_1000": over((PLAIN_TWIN, short), ("TWIN", short)),
            "twin_over_din_l_10000": over(("TWIN", long), (DIN_L, long)),
            "torch_din_l_over_encode_1000": over((TORCH, short), ("ENCODE", short)),
        },
    }


def measure(
    shop: Shop, load: Load, lengths: Sequence[int], sizes: Sequence[int]
) -> dict[Row, Times]:
    """Times of all methods at all lengths and sizes; of the peers at the first of each."""
    times: dict[Row, Times] = {}
    for L in lengths:
        users = [shop.user(L) for _ in range(load.users)]
        for B in sizes:
            keys = [shop.candidates(B) for _ in users]
            ways = _ways(shop, peers=not times)
            requests = {Row(name, L, B): list(map(way, users)) for name, way in ways.items()}
            times |= {row: Times() for row in requests}
            passes = min(MOST_PASSES, max(sizes) // B)
            for number in range(-1, load.rounds):  # the first one warms up
                for row, of_users in requests.items():
                    _ask(of_users, keys, passes, times[row] if number >= 0 else Times())
    return times


def _ways(shop: Shop, *, peers: bool) -> dict[str, Callable[[User], Request]]:
    """What is measured, by name."""
    ways: dict[str, Callable[[User], Request]] = {
        name: lambda user, name=name: shop.served(name, user)  # type: ignore[misc]
        for name in SERVED
    }
    ways |= {DIN_L: shop.din_l, AVERAGE: shop.avg_pooling}
    if peers:
        ways |= {
            TORCH: shop.din_l_in_torch,
            PLAIN_SDIM: shop.plain_sdim,
            PLAIN_TWIN: shop.plain_twin,
        }
    return ways


def _ask(requests: Sequence[Request], keys: Sequence[U64], passes: int, into: Times) -> None:
    """Ask for every user, and add the mean of a request to the times."""
    clock = time.process_time
    lookup = features = feed = model = 0.0
    for request, asked in zip(requests, keys, strict=True):
        for _ in range(passes):
            began = clock()
            candidates = request.look_up(asked)
            found = clock()
            inputs = request.feed(candidates)
            fed = clock()
            request.run(inputs)
            done = clock()
            request.features(candidates)
            features += clock() - done
            lookup, feed, model = lookup + found - began, feed + fed - found, model + done - fed
    for taken, spent in (
        (into.lookup, lookup),
        (into.features, features),
        (into.feed, feed),
        (into.model, model),
    ):
        taken.append(1e6 * spent / (passes * len(requests)))


def _described(row: Row, times: Times) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": str(row),
        "method": row.name,
        "L": row.L,
        "B": row.B,
        "value": round(median(times.whole), 1),
        "unit": "µs",
    }
    # Beside TWIN's plain graph nothing else could be seen.
    if row.B == LARGEST and row.name != PLAIN_TWIN:
        described["stages"] = times.stages()
    return described


def _ratios(times: Mapping[Row, Times]) -> dict[str, float]:
    """How many times faster than a peer, or than DIN-L, what is held against it is."""
    held = {**PEERS, DIN_L: "ENCODE"}
    return {
        str(row): taken.over(times[row._replace(name=held[row.name])])
        for row, taken in times.items()
        if row.name in held
    }
