"""A made-up shop, one of its users, and the ways in which a request for them can be answered.

All methods share one item table and one tower, of a size in use (200-80); weights are untrained,
which no time depends on. Items are asked for and bought by Zipf's law, so that a user's behaviors
repeat their items. A served system answers by its own `extractor.system.System`, as the scorer has
it after the store was read, with behaviors newer than its state. What is not served, and the plain
graphs of what is, get what they need by the same functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
import torch

from extractor.state import InterestState
from extractor.system import Candidates, System, UserHistory, common_feed, common_state
from extractor.systems import open_system
from extractor.systems.sdim import buckets_of
from infra.arrays import F32, I32, U64, Array
from infra.behaviors import BEHAVIOR, item_key
from infra.store import Behaviors, StoredSequence, Version
from models.bundle import Bundle, make_session, save_bundle
from models.config import RunConfig
from models.data.schema import Inputs, Schema
from models.export import export_network, export_scorer
from models.features import PER_MILLION
from models.modules.sequence import Target
from models.network import Network, NetworkConfig
from models.networks.avg_pooling import AvgPoolingConfig
from models.networks.din import DINLConfig
from models.networks.encode import EncodeConfig
from models.networks.sdim import SDIMConfig
from models.networks.twin import TWINConfig
from models.prediction import make_network

if TYPE_CHECKING:
    import onnxruntime

    from models.networks import AnyConfig

SERVED: Final[Mapping[str, AnyConfig]] = {
    "ENCODE": EncodeConfig(),
    "SDIM": SDIMConfig(),
    "TWIN": TWINConfig(),
}
"""The systems, by name, as their papers have them."""

NEWER: Final = 32
"""Behaviors newer than a state, half of a segment: as many as there are on average."""

SEED: Final = 20
START_MS: Final = 1_700_000_000_000
HOUR_MS: Final = 3_600_000


class Request(NamedTuple):
    """One way of answering a request, in the steps that the scorer takes."""

    look_up: Callable[[U64], Candidates]
    """The candidates, by their item keys u64[B]."""
    features: Callable[[Candidates], Mapping[str, Array]]
    """What all methods compute, of a user whose items are counted: a part of `feed`."""
    feed: Callable[[Candidates], Mapping[str, Array]]
    """All inputs of the model."""
    run: Callable[[Mapping[str, Array]], F32]
    """CTRs f32[B]."""

    def answer(self, keys: U64) -> F32:
        """The CTRs f32[B] of candidates u64[B]."""
        return self.run(self.feed(self.look_up(keys)))


@dataclass(frozen=True)
class User:
    """Somebody with as many behaviors as all systems look at, and a few more."""

    behaviors: Behaviors
    """BEHAVIOR[L + NEWER], oldest first."""
    newer: int = NEWER
    """How many came since the state."""

    @property
    def version(self) -> Version:
        """Of the whole sequence."""
        return Version(START_MS, len(self.behaviors))

    @property
    def now_ms(self) -> int:
        """The time of the request, right after the last behavior."""
        return int(self.behaviors["time"][-1]) + HOUR_MS

    @property
    def covered(self) -> StoredSequence:
        """What the state is made of: all but the newer behaviors."""
        kept = self.behaviors[: len(self.behaviors) - self.newer]
        return StoredSequence(Version(START_MS, len(kept)), kept, {})

    def history(self, state: InterestState | None) -> UserHistory:
        """What a request is given, with a state or without."""
        covered = 0 if state is None else state.count
        return UserHistory(self.version, state, self.behaviors[covered:])


class Shop:
    """Items, and the methods' networks on them."""

    def __init__(
        self,
        items: int,
        network: NetworkConfig,
        *,
        served: Mapping[str, AnyConfig] = SERVED,
        plain: bool = True,
        keep: Path | None = None,
    ) -> None:
        """Make up the items and export the networks, which takes some seconds each.

        Args:
            items: n; item r is met 1 / r as often as the first.
            network: what all methods share.
            served: the systems that are asked for.
            plain: whether what is not served, and the plain graphs of what is, are asked for too;
                without them there is DIN-L in torch.
            keep: where the bundles of what is served are left, by name; None: nowhere.
        """
        self._rng = np.random.default_rng(SEED)
        self._ids = ["", *(f"item-{row}" for row in range(1, items + 1))]
        self._keys = np.array([item_key(item) for item in self._ids[1:]], np.uint64)
        shares = 1 / np.arange(1, items + 1)
        self._shares = shares / shares.sum()
        self._config = network
        self._embeddings = self._rng.normal(scale=network.d**-0.5, size=(items + 1, network.d))
        self._embeddings[0] = 0
        with (
            torch.random.fork_rng(devices=()),
            torch.no_grad(),
            tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory,
        ):
            path = keep or Path(directory)
            self.bundles = {
                name: self._bundle(config, path / name) for name, config in served.items()
            }
            self._din_l = self._network(DINLConfig())
            graphs: dict[str, AnyConfig] = {
                "DIN-L": DINLConfig(),
                "AvgPooling": AvgPoolingConfig(),
                "SDIM": SERVED["SDIM"],
                "TWIN": SERVED["TWIN"],
            }
            self._sessions = {name: self._graph(config) for name, config in graphs.items() if plain}

    def candidates(self, B: int) -> U64:
        """Item keys u64[B], all different."""
        return self._rng.choice(self._keys, B, replace=False, p=self._shares)

    def ids(self, keys: U64) -> list[str]:
        """The ids of items, by their keys u64[B]."""
        return [self._ids[row] for row in self._any.rows(keys).tolist()]

    def user(self, L: int, newer: int = NEWER) -> User:
        """A user with L behaviors under a state, and some newer ones."""
        behaviors = np.zeros(L + newer, BEHAVIOR)
        behaviors["item"] = self._rng.choice(self._keys, L + newer, p=self._shares)
        behaviors["time"] = START_MS + HOUR_MS * np.arange(L + newer)
        return User(behaviors, newer)

    def served(self, name: str, user: User) -> Request:
        """As the scorer answers, with the record of a state as the store gives it back."""
        bundle = _of_length(self.bundles[name], len(user.covered.behaviors))
        system, session = open_system(bundle), bundle.scorer_session()
        system.warm()
        history = user.history(_stored(system, user.covered) if system.keeps_state else None)
        return Request(
            look_up=partial(_look_up, bundle),
            features=_features(bundle, user),
            feed=lambda candidates: system.feed(history, candidates, user.now_ms),
            run=partial(_run, session),
        )

    def din_l(self, user: User) -> Request:
        """DIN-L, which reads the embeddings of all behaviors."""
        return self._exported("DIN-L", user, lambda rows: _sequence(self._any, rows))

    def din_l_in_torch(self, user: User) -> Request:
        """The same network in torch."""
        run = partial(_run_din_l, self._din_l)
        return self._answered(run, user, lambda rows: _sequence(self._any, rows))

    def avg_pooling(self, user: User) -> Request:
        """The mean of the behaviors' embeddings, which is stored; nothing is less."""
        keys = np.ascontiguousarray(user.behaviors["item"])
        mean = self._any.embeddings[self._any.rows(keys)].mean(0, keepdims=True)
        return self._exported("AvgPooling", user, lambda _: {"average": mean})

    def plain_sdim(self, user: User) -> Request:
        """SDIM by its exported graph, which hashes the candidates; its state has all behaviors."""
        state = _stored(open_system(self.bundles["SDIM"]), user.covered)
        buckets = {"buckets": buckets_of(state).buckets.astype(np.float32)}
        return self._exported("SDIM", user, lambda _: buckets)

    def plain_twin(self, user: User) -> Request:
        """TWIN by its exported graph, which ranks every behavior for every candidate."""
        tables = self.bundles["TWIN"].tables
        return self._exported(
            "TWIN",
            user,
            lambda rows: {
                "keys": tables["keys"][rows].astype(np.float32),
                "values": tables["values"][rows],
                "behavior_mask": np.ones(len(rows), np.float32),
            },
        )

    @property
    def _any(self) -> Bundle:
        """All bundles have the same items, with the same embeddings."""
        return next(iter(self.bundles.values()))

    def _exported(
        self, name: str, user: User, state: Callable[[I32], Mapping[str, Array]]
    ) -> Request:
        """By a graph, from what ``state`` makes of the rows i32[L] of the last behaviors' items."""
        return self._answered(partial(_run, self._sessions[name]), user, state)

    def _answered(
        self,
        run: Callable[[Mapping[str, Array]], F32],
        user: User,
        state: Callable[[I32], Mapping[str, Array]],
    ) -> Request:
        """By a network, as `_exported`."""
        bundle, features = self._any, _features(self._any, user)
        keys = np.ascontiguousarray(user.behaviors["item"][user.newer :])
        return Request(
            look_up=partial(_look_up, bundle),
            features=features,
            feed=lambda candidates: {**state(bundle.rows(keys)), **features(candidates)},
            run=run,
        )

    def _network(self, method: AnyConfig) -> Network:
        inputs = Inputs(Schema(), len(self._keys), n_users=0, items={}, users={}, heights={})
        network = make_network(self._run_config(method), inputs).eval()
        network.embedding.weight.copy_(torch.from_numpy(self._embeddings))
        return network

    def _run_config(self, method: AnyConfig) -> RunConfig:
        return RunConfig(network=self._config, long_term=method, seed=SEED)

    def _graph(self, method: AnyConfig) -> onnxruntime.InferenceSession:
        network = self._network(method)
        return make_session(export_scorer(network, network.item_table(), SEED))

    def _bundle(self, method: AnyConfig, path: Path) -> Bundle:
        """A bundle as a service loads it."""
        contents, _ = export_network(
            self._network(method),
            self._run_config(method),
            item_ids=self._ids,
            titles=[""] * len(self._ids),
            popularity=np.concatenate(([0], PER_MILLION * self._shares)).astype(np.float32),
        )
        save_bundle(contents, path)
        return Bundle.load(path)


def _of_length(bundle: Bundle, L: int) -> Bundle:
    """The bundle for sequences of another length: no graph and no table depends on it."""
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, L=L))


def _stored(system: System, sequence: StoredSequence) -> InterestState:
    """A state as it comes back from a store."""
    return system.layout.decode(system.layout.encode(system.extract(sequence)))


def _look_up(bundle: Bundle, keys: U64) -> Candidates:
    return Candidates(keys, bundle.rows(keys))


def _features(bundle: Bundle, user: User) -> Callable[[Candidates], Mapping[str, Array]]:
    """The inputs that all graphs have, of a user whose items were counted with the state."""
    covered = user.covered
    state = common_state(bundle, covered.version, covered.behaviors)
    history = user.history(state)
    return lambda candidates: common_feed(bundle, history, candidates, user.now_ms)


def _sequence(bundle: Bundle, rows: I32) -> Mapping[str, Array]:
    return {"sequence": bundle.embeddings[rows], "sequence_mask": np.ones(len(rows), np.float32)}


def _run(session: onnxruntime.InferenceSession, feed: Mapping[str, Array]) -> F32:
    (ctrs,) = session.run(None, dict(feed))
    return ctrs  # type: ignore[no-any-return]  # onnxruntime has no types


@torch.inference_mode()
def _run_din_l(network: Network, feed: Mapping[str, Array]) -> F32:
    of = {name: torch.from_numpy(array) for name, array in feed.items()}
    rows = torch.zeros(len(of["candidates"]), dtype=torch.long)  # which it does not look at
    logits = network.logits(
        {name: of[name] for name in ("sequence", "sequence_mask")},
        of["recent"],
        of["recent_mask"],
        of["user"],
        Target(of["candidates"], rows, rows),
        of["cross"],
    )
    ctrs: F32 = torch.sigmoid(logits).numpy()
    return ctrs
