"""``lifelong bench train``: samples a second in training, ours beside FuxiCTR's same models.

Both train on the same samples, of MovieLens 1M's size: every sequence is full, every item has its
id alone. Embedding, tower, batch, optimizer and threads are the same; the rest is each side's own
default. The load of data counts, since whoever trains waits for it too; "steps" has the rates
without it. All alternate in rounds; medians count, ratios are taken round by round.

One thread, unless told otherwise: two of them wait for each other by spinning, so that whatever
else holds a core for a moment makes a step up to twenty times slower. "spread" shows such a run.

Our DIN-L scores by scaled dot product, as ENCODE and TWIN have it; FuxiCTR's only by DIN's MLP,
which costs far more. "DIN-L, activation unit" is ours with an MLP of the same width: the ratio of
like with like.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infra.arrays import I32, I64
from lifelong.bench.fuxictr_peer import HIDDEN, MODELS, D, Request
from lifelong.bench.fuxictr_process import FuxiCTR
from lifelong.machine import machine
from models.config import TrainingConfig
from models.data.batches import Batch, Gatherer, prefetch
from models.data.interactions import Interactions
from models.data.requests import Requests, Sequences
from models.data.schema import Inputs, Schema
from models.network import Network, NetworkConfig
from models.networks import AnyConfig
from models.training import batch_loss

USERS: Final = 1000
ITEMS: Final = 3706
SPREAD: Final = 64
"""Places in a user's sequence that samples come from: few samples share a sequence."""
SEED: Final = 20
M: Final = 50
"""Behaviors that DIN sees, and everybody's recent ones."""
SHORT: Final = 200
LONG: Final = 1000
LIKE: Final = {"DIN-L, activation unit": "DIN-L"}
"""Our models that are compared with FuxiCTR's of another name."""

CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "DIN": {"network": "din"},
    "DIN-L": {"network": "din-l"},
    "DIN-L, activation unit": {"network": "din-l", "attention": "mlp", "hidden": 64},
    "SIM soft": {"network": "sim", "search": "soft"},
    "ETA": {"network": "eta"},
    "SDIM": {"network": "sdim"},
    "TWIN": {"network": "twin"},
    "ENCODE": {"network": "encode"},
}
"""Our models by name: the method, and where it differs from its defaults."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    batches: int
    """Batches of an epoch at SHORT behaviors; at LONG half as many."""
    warm_up: int = 2
    batch: int = 1024
    users: int = USERS


FULL: Final = Load(rounds=5, batches=16)
QUICK: Final = Load(rounds=1, batches=10)


@dataclass(frozen=True, slots=True)
class RandomSamples:
    """Samples of one length of sequence, as arrays."""

    length: int
    """Behaviors before every sample."""
    items: I32
    """i32[U, length + SPREAD]: the users' behaviors."""
    user: I64
    """i64[S]: whose each sample is."""
    place: I64
    """i64[S]: behaviors of the user before the sample."""
    candidate: I32
    """i32[S]: the item that each sample is of."""
    label: I64
    """i64[S]: 0 or 1."""

    @classmethod
    def draw(cls, length: int, size: int, users: int = USERS) -> RandomSamples:
        """Random samples: what they say does not matter to how long they take."""
        rng = np.random.default_rng((SEED, length))
        return cls(
            length=length,
            items=rng.integers(1, ITEMS + 1, (users, length + SPREAD), np.int32),
            user=rng.integers(0, users, size),
            place=rng.integers(length, length + SPREAD, size),
            candidate=rng.integers(1, ITEMS + 1, size, np.int32),
            label=rng.integers(0, 2, size),
        )

    def write(self, directory: Path) -> None:
        """The tables that FuxiCTR's long-sequence loader reads, and its description of them."""
        tables = {
            "train": {
                "user_index": self.user,
                "item_index": self.candidate.astype(np.int64),
                "seq_len": self.place,
                "label": self.label,
            },
            "users": {
                "user_index": np.arange(len(self.items)),
                "full_item_seq": pa.array(list(self.items.astype(np.int64))),
            },
            "items": {"item_index": np.arange(ITEMS + 1), "item_id": np.arange(ITEMS + 1)},
        }
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), directory / f"{name}.parquet")
        item_id = {
            "source": "item",
            "type": "categorical",
            "vocab_size": ITEMS + 1,
            "padding_idx": 0,
        }
        keys = ("user_index", "item_index", "seq_len")
        feature_map = {
            "dataset_id": directory.name,
            "labels": ["label"],
            "features": [*({key: {"type": "meta"}} for key in keys), {"item_id": item_id}],
        }
        (directory / "feature_map.json").write_text(json.dumps(feature_map))

    def interactions(self) -> Interactions:
        """The users' behaviors in our form, all users in step."""
        users, width = self.items.shape
        return Interactions(
            user_ids=[str(user) for user in range(users)],
            item_ids=["", *map(str, range(1, ITEMS + 1))],
            titles=[""] * (ITEMS + 1),
            users=np.tile(np.arange(users, dtype=np.int32), width),
            items=np.ascontiguousarray(self.items.T).reshape(-1),
            times=np.repeat(1_000_000_000 + 3600 * np.arange(width), users),
        )

    def requests(self) -> Requests:
        """The samples in our form: a sequence ends right before its sample."""
        cut = self.user * self.items.shape[1] + self.place
        return Requests(
            cut=cut,
            as_of=cut,
            bundle=np.full(len(cut), self.items.size),
            candidates=self.candidate[:, None],
            labels=self.label[:, None].astype(np.float32),
            weights=np.ones((len(cut), 1), np.float32),
        )


class Ours:
    """Our trainer's work on the same samples: gathering in a thread of its own, then a step."""

    def __init__(self, samples: RandomSamples, batch: int) -> None:
        self._interactions = samples.interactions()
        self._sequences = Sequences.of(self._interactions)
        self._inputs = Inputs.of(self._interactions, Schema())
        self._requests = samples.requests()
        self._batch = batch
        self._steps: dict[str, Callable[[Batch], None]] = {}
        self._loaded: dict[int, list[Batch]] = {}

    def samples_per_second(self, name: str, length: int, warm_up: int, *, loading: bool) -> float:
        """Samples a second over one epoch, measured as FuxiCTR's are."""
        if name not in self._steps:
            self._steps[name] = our_step(name, length, self._inputs)
        if loading:
            batches: Iterable[Batch] = prefetch(self._gathered(length))
        else:
            batches = self._loaded.get(length) or list(self._gathered(length))
            self._loaded[length] = list(batches)
        times = []
        for batch in batches:
            times.append(time.perf_counter())
            self._steps[name](batch)
        return self._batch * (len(times) - 1 - warm_up) / (times[-1] - times[warm_up])

    def _gathered(self, length: int) -> Iterable[Batch]:
        gatherer = Gatherer(self._interactions, self._sequences, self._inputs, length)
        return gatherer.batches(self._requests, self._batch)


def our_step(name: str, length: int, inputs: Inputs) -> Callable[[Batch], None]:
    """A training step of one of ours, on a network of its own.

    Args:
        name: a key of `CONFIGS`.
        length: behaviors that the long-term module sees.
        inputs: of the samples.
    """
    torch.manual_seed(SEED)
    config = msgspec.convert({"L": length, **CONFIGS[name]}, AnyConfig)
    network = Network(NetworkConfig(d=D, M=M, hidden=HIDDEN), inputs, config.build(D, inputs))
    return training_step(network, TrainingConfig(), SEED)


def training_step(network: Network, training: TrainingConfig, seed: int) -> Callable[[Batch], None]:
    """A step of training on a batch, nothing beside it: what is timed.

    Args:
        network: learns.
        training: says how.
        seed: of what a method's own loss draws.
    """
    optimizer = torch.optim.Adam(network.parameters(), training.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    weigh = training.auxiliary_weight

    def step(batch: Batch) -> None:
        entropy, weight, auxiliary = batch_loss(network, batch, generator)
        loss = entropy / weight + weigh * auxiliary
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # a trainer watches its loss

    return step


def run(
    quick: bool,
    threads: int = 1,
    peer_python: Path | None = None,
    names: Sequence[str] = tuple(CONFIGS),
) -> dict[str, Any]:
    """Measure; the bench's JSON object.

    Beside what every bench has, "steps" has the same rates without loading, and "encode_cost" the
    time that ENCODE's training takes over that of our DIN-L, both at LONG behaviors.

    Args:
        quick: one short round.
        threads: of torch, on both sides; more than one only where nothing else runs.
        peer_python: one that has FuxiCTR and torch; by default FuxiCTR is fetched for our own.
        names: the models to measure, keys of `CONFIGS`.

    Raises:
        PeerError: FuxiCTR cannot be fetched, started or measured.
    """
    load = QUICK if quick else FULL
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory:
        folder = Path(directory)
        samples = RandomSamples.draw(SHORT, load.batches * load.batch, load.users)
        samples.write(folder)
        with FuxiCTR(folder, threads, peer_python) as fuxictr:
            short = Ours(samples, load.batch)
            longer = RandomSamples.draw(LONG, load.batches // 2 * load.batch, load.users)
            systems = _systems(names, load, short, Ours(longer, load.batch), fuxictr)
            return _result(*_rounds(systems, load.rounds), threads)


Rates = dict[str, list[float]]
System = Callable[[bool], float]
"""A system that is measured: from whether loading counts to samples a second."""


def _systems(
    names: Sequence[str], load: Load, short: Ours, longer: Ours, fuxictr: FuxiCTR
) -> dict[str, System]:
    systems: dict[str, System] = {}
    for name in names:
        length = M if name == "DIN" else SHORT
        systems[name] = _ours(short, name, length, load)
        if name in MODELS:
            systems[_peer(name)] = _theirs(fuxictr, name, length, load)
    for name in ("DIN-L", "ENCODE"):
        if name in names:
            systems[_long(name)] = _ours(longer, name, LONG, load)
    return systems


def _rounds(systems: dict[str, System], rounds: int) -> tuple[Rates, Rates]:
    """Rates by name, one a round: with loading, and of the steps alone."""
    whole: Rates = {name: [] for name in systems}
    steps: Rates = {name: [] for name in systems}
    for _ in range(rounds):
        for rates, loading in ((whole, True), (steps, False)):
            for name, system in systems.items():
                rates[name].append(system(loading))
    return whole, steps


def _ours(side: Ours, name: str, length: int, load: Load) -> System:
    return lambda loading: side.samples_per_second(name, length, load.warm_up, loading=loading)


def _theirs(side: FuxiCTR, name: str, length: int, load: Load) -> System:
    return lambda loading: side.samples_per_second(
        Request(name, length, load.batch, load.warm_up, loading)
    )


def _peer(name: str) -> str:
    return f"FuxiCTR {name}"


def _long(name: str) -> str:
    return f"{name}, L = {LONG}"


def _result(whole: Rates, steps: Rates, threads: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "machine": f"{machine()}, {threads} thread{'s' * (threads > 1)}",
        "rounds": len(next(iter(whole.values()))),
        "peers": [_peer(name) for name in MODELS if _peer(name) in whole],
        "results": [
            {"name": name, "value": round(median(values), 1), "unit": "samples/s"}
            for name, values in whole.items()
        ],
        "ratios": _ratios(whole),
        "spread": _spread(whole),
        "steps": {
            "results": {name: round(median(values), 1) for name, values in steps.items()},
            "ratios": _ratios(steps),
            "spread": _spread(steps),
        },
    }
    if {_long("DIN-L"), _long("ENCODE")} <= whole.keys():
        result["encode_cost"] = _over(whole[_long("DIN-L")], whole[_long("ENCODE")])
    return result


def _spread(rates: Rates) -> dict[str, list[float]]:
    """Slowest and fastest round of each system."""
    return {name: [round(min(v), 1), round(max(v), 1)] for name, v in rates.items()}


def _ratios(rates: Rates) -> dict[str, float]:
    """How many times faster each of ours is than FuxiCTR's same model."""
    ratios = {}
    for name in CONFIGS:
        peer = _peer(LIKE.get(name, name))
        if {name, peer} <= rates.keys():
            ratios[name if name in LIKE else peer] = _over(rates[name], rates[peer])
    return ratios


def _over(above: list[float], below: list[float]) -> float:
    # Pair by pair, since the machine's speed drifts between rounds.
    return round(median(a / b for a, b in zip(above, below, strict=True)), 2)
