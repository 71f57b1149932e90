"""The inference time of methods (ENCODE, Table 2), by the code that scores.

A request is one user with L behaviors and B candidates, and what is timed begins with the
candidates' item keys and ends with their CTRs: the keys are looked up in the bundle, embeddings
gathered, user and cross features computed, and the exported graph run on what the method's offline
stage stored of the user, on one core, in a session as the scorer makes it. To read that state from
a store is not in it, since it depends on the store; "state_bytes" says how much there is to read.

The scorer serves ENCODE, SDIM and TWIN. It scores the other methods' requests by the same
functions, with their state in the place of ENCODE's interests, which is also done for these:
"graph" beside "scorer". A search of another method is what its exported graph does: it looks at
every behavior for every candidate, where a service of that method's own might keep an index.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import torch

from extractor.system import Candidates, System, UserHistory, common_feed, common_state
from extractor.systems import open_system
from infra.arrays import F32, I64, U64, Array
from infra.behaviors import BEHAVIOR
from infra.errors import one_line
from infra.store import Behaviors, StoredSequence, Version
from lifelong.experiments.tables import REFERENCE
from lifelong.experiments.timing import Times, time_in_turns
from lifelong.machine import machine
from models.bundle import Bundle, Catalog, Manifest, make_session, save_bundle
from models.bundle.combinations import Combinations
from models.config import RunConfig
from models.data.schema import Inputs, Schema
from models.devices import one_thread
from models.export import export_network, export_scorer, served_as
from models.features import CROSS_FEATURES, PER_MILLION, USER_FEATURES, age_bucket, ages_s
from models.modules.sequence import BehaviorSequence, Target
from models.network import Network, NetworkConfig
from models.prediction import make_network
from scorer.ids import item_keys

if TYPE_CHECKING:
    import onnxruntime

ITEMS: Final = 50_000
CATEGORIES: Final = 500
START_MS: Final = 1_700_000_000_000
HOUR_MS: Final = 3_600_000

SCORER: Final = "scorer"
GRAPH: Final = "graph"
"""The two ways to answer a request: a served system, and any exported graph."""

Request = Callable[[], F32]
"""A whole request; CTRs f32[B]."""


def measure_serving(
    methods: Mapping[str, RunConfig],
    *,
    candidates: int = 3000,
    behaviors: int = 1000,
    items: int = ITEMS,
    rounds: int = 11,
    seed: int = 0,
    network: NetworkConfig | None = None,
) -> dict[str, Any]:
    """Time one rank request of each method. Weights are untrained: no time depends on them.

    Args:
        methods: by label; "DIN-L" is what the others are compared with. Of a configuration the
            method counts, all but its L, and the behavior features of its schema but for actions.
        candidates: B.
        behaviors: L, all of them there.
        items: of the made-up item table; each has a category.
        rounds: in which all alternate.
        seed: of weights, user and candidates.
        network: what all methods share; None: the defaults (d = 32, M = 50).

    Returns:
        "methods": by label either "error", one line on why it cannot be exported or run, or: "ms",
        milliseconds of processor time, the median over rounds; "ms_all", a value a round;
        "wall_ms", the median by the wall clock; "ratio", how many times as long as DIN-L it took,
        the median of each round's (None without DIN-L); "state_bytes", what the graph reads of the
        user beside what all methods' graphs do; "difference", the largest between these CTRs and
        the torch network's. Where the scorer serves the method, "ms" is the scorer's, and "scorer"
        and "graph" are the medians of both ways. Beside "methods" "B", "L", "d", "M", "items",
        "rounds", "machine".
    """
    network = network or NetworkConfig()
    served: dict[str, _Served] = {}
    failed: dict[str, str] = {}
    with one_thread(), torch.random.fork_rng(devices=()), torch.no_grad():
        shop = _Shop.draw(network, behaviors, candidates, items, seed)
        for label, config in methods.items():
            try:
                served[label] = _serve(_config(config, shop), shop)
            except Exception as error:  # noqa: BLE001  # exporter and runtime have any of their own
                failed[label] = one_line(f"{type(error).__name__}: {error}", 200)
        ways = {
            (label, way): request
            for label, method in served.items()
            for way, request in method.ways.items()
        }
        times = time_in_turns(ways, rounds)
    return {
        "methods": {
            label: {"error": failed[label]}
            if label in failed
            else _described(label, served[label], times)
            for label in methods
        },
        "B": candidates,
        "L": behaviors,
        "d": network.d,
        "M": network.M,
        "items": items,
        "rounds": rounds,
        "machine": machine(),
    }


@dataclass(frozen=True)
class _Served:
    """A method, ready for requests."""

    ways: dict[str, Request]
    """`GRAPH`, and before it `SCORER` where the scorer serves the method."""
    state_bytes: int
    difference: float
    """The largest of the ways' CTRs from the network's own."""


@dataclass(frozen=True)
class _Shop:
    """One item table for all methods, a user and a request."""

    network: NetworkConfig
    categories: I64
    """i64[n + 1]: the items' categories."""
    table: Bundle
    """The items, as the scorer looks them up; no graph goes with them."""
    behaviors: Behaviors
    keys: U64
    """u64[B]: the candidates."""
    now_ms: int
    seed: int

    @classmethod
    def draw(cls, network: NetworkConfig, L: int, B: int, n: int, seed: int) -> _Shop:
        """A random item table, user and request."""
        rng = np.random.default_rng(seed)
        categories = rng.integers(1, CATEGORIES, n + 1)
        categories[0] = 0
        ids = ["", *(f"item-{row}" for row in range(1, n + 1))]
        keys = item_keys(ids)
        behaviors = np.zeros(L, BEHAVIOR)
        behaviors["item"] = keys[rng.integers(1, n + 1, L)]
        behaviors["time"] = START_MS + HOUR_MS * np.arange(L)
        return cls(
            network=network,
            categories=categories,
            table=_table(network, L, ids, rng),
            behaviors=behaviors,
            keys=keys[rng.integers(1, n + 1, B)],
            now_ms=START_MS + HOUR_MS * L,
            seed=seed,
        )

    def inputs(self, schema: Schema) -> Inputs:
        """A schema bound to these items."""
        seen = Combinations.of(schema.behaviors, actions=0).heights
        heights = {f"behavior.{name}": height for name, height in seen.items()}
        return Inputs(
            schema=schema,
            n_items=self.table.manifest.n_items,
            n_users=0,
            items={"category": self.categories[:, None]},
            users={},
            heights=heights | {"item.category": CATEGORIES},
        )

    @property
    def version(self) -> Version:
        """Version of the user's sequence."""
        return Version(START_MS, len(self.behaviors))

    def candidates(self, bundle: Bundle) -> Candidates:
        """The candidates as a bundle looks them up."""
        return Candidates(self.keys, bundle.rows(self.keys))

    def counted(self, bundle: Bundle) -> UserHistory:
        """What all systems store of the user, without the tensors of any."""
        state = common_state(bundle, self.version, self.behaviors, now_ms=self.now_ms)
        return UserHistory(self.version, state, self.behaviors[:0])

    def history(self, system: System) -> UserHistory:
        """The user's state by a served system, which covers all behaviors; or these themselves."""
        if not system.keeps_state:
            return UserHistory(self.version, None, self.behaviors)
        state = system.extract(StoredSequence(self.version, self.behaviors, {}))
        return UserHistory(self.version, state, self.behaviors[:0])

    def stored(self, network: Network) -> dict[str, Array]:
        """What a method's offline stage makes of the user."""
        rows = self.table.rows(np.ascontiguousarray(self.behaviors["item"])).astype(np.int64)
        ages = age_bucket(ages_s(self.behaviors["time"] // 1000, self.now_ms // 1000))
        none = np.zeros_like(rows)
        known = {"action": none, "dwell": none, "age": ages.astype(np.int64)}
        sequence = BehaviorSequence(
            torch.from_numpy(rows)[None],
            torch.ones(1, len(rows), dtype=torch.bool),
            network.item_table(),
            features={
                name: torch.from_numpy(known[name])[None]
                for name in network.inputs.schema.behaviors
            },
            feature_tables=network.feature_tables(),
            categories=torch.from_numpy(self.categories),
        )
        state = network.long.summarize(sequence)
        return {name: np.ascontiguousarray(tensor[0].numpy()) for name, tensor in state.items()}


def _table(network: NetworkConfig, L: int, ids: Sequence[str], rng: np.random.Generator) -> Bundle:
    n = len(ids) - 1
    embeddings = rng.normal(scale=network.d**-0.5, size=(n + 1, network.d)).astype(np.float32)
    embeddings[0] = 0
    popularity = np.full(n + 1, PER_MILLION / n, np.float32)
    popularity[0] = 0
    manifest = Manifest(
        name="table",
        n_items=n,
        d=network.d,
        system="encode",
        L=L,
        M=network.M,
        u=len(USER_FEATURES),
        c=len(CROSS_FEATURES),
    )
    return Bundle(
        path=Path("table"),
        manifest=manifest,
        digest=bytes(16),
        catalog=Catalog.of(ids, [""] * (n + 1), popularity),
        embeddings=embeddings,
        tables={},
        scorer_model=b"",
        golden=[],
    )


def _config(run: RunConfig, shop: _Shop) -> RunConfig:
    # DIN has no long-term part to lengthen: its L is 0.
    length = len(shop.behaviors) if run.long_term.L else 0
    method = msgspec.structs.replace(run.long_term, L=length)
    # The shop tells no actions apart; one costs a row more of a table, whatever the method.
    behavior = tuple(name for name in run.schema.behaviors if name != "action")
    return RunConfig(
        schema=Schema(category="category", behavior=behavior),
        network=shop.network,
        long_term=method,
        seed=shop.seed,
    )


def _serve(config: RunConfig, shop: _Shop) -> _Served:
    """Export a method, and try it."""
    network = make_network(config, shop.inputs(config.schema)).eval()
    network.embedding.weight.copy_(torch.from_numpy(shop.table.embeddings))
    ways: dict[str, Request] = {}
    table = shop.table
    if served_as(network) is not None:
        table = _bundle(network, config, shop)
        ways[SCORER] = _scorer(table, shop)
    session = make_session(export_scorer(network, network.item_table(), shop.seed))
    graph = ways[GRAPH] = _Graph(session, table, shop, network)
    expected = graph.expected(network)
    difference = max(float(np.abs(request() - expected).max()) for request in ways.values())
    return _Served(ways, graph.state_bytes, difference)


def _bundle(network: Network, config: RunConfig, shop: _Shop) -> Bundle:
    """A bundle as a service loads it."""
    contents, _ = export_network(
        network,
        config,
        item_ids=shop.table.item_ids,
        titles=shop.table.titles,
        popularity=shop.table.popularity,
    )
    with tempfile.TemporaryDirectory(prefix="lifelong-serving-") as directory:
        path = Path(directory) / "bundle"
        save_bundle(contents, path)
        return Bundle.load(path)


def _scorer(bundle: Bundle, shop: _Shop) -> Request:
    system, session = open_system(bundle), bundle.scorer_session()
    history = shop.history(system)

    def request() -> F32:
        (ctrs,) = session.run(None, system.feed(history, shop.candidates(bundle), shop.now_ms))
        return ctrs  # type: ignore[no-any-return]  # onnxruntime has no types

    return request


class _Graph:
    """What the scorer does of a request, with the state of any method."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        bundle: Bundle,
        shop: _Shop,
        network: Network,
    ) -> None:
        self._session, self._bundle, self._shop = session, bundle, shop
        self._history = shop.counted(bundle)
        self._stored = shop.stored(network)
        self._reads = network.long.reads
        # A graph has no input for what it does not look at.
        self._inputs = [node.name for node in session.get_inputs()]
        self.state_bytes = sum(
            self._stored[name].nbytes for name in self._inputs if name in self._stored
        )

    def __call__(self) -> F32:
        """The CTRs f32[B] of the request, by the graph."""
        feed = self._feed()
        (ctrs,) = self._session.run(None, {name: feed[name] for name in self._inputs})
        return ctrs  # type: ignore[no-any-return]  # onnxruntime has no types

    def expected(self, network: Network) -> F32:
        """The CTRs f32[B] that the network itself gives."""
        feed = {name: torch.from_numpy(array) for name, array in self._feed().items()}
        candidates = feed["candidates"]
        none = torch.zeros(len(candidates), dtype=torch.long)
        logits = network.logits(
            {name: feed[name] for name in self._stored},
            feed["recent"],
            feed["recent_mask"],
            feed["user"],
            Target(
                candidates,
                feed.get("candidate_categories", none),
                feed.get("candidate_rows", none),
            ),
            feed["cross"],
        )
        ctrs: F32 = network.ctrs(logits).numpy()
        return ctrs

    def _feed(self) -> dict[str, Array]:
        shop = self._shop
        candidates = shop.candidates(self._bundle)
        rows = candidates.rows
        feed: dict[str, Array] = dict(
            common_feed(self._bundle, self._history, candidates, shop.now_ms)
        )
        feed |= self._stored
        if "categories" in self._reads:
            feed["candidate_categories"] = shop.categories[rows]
        if "rows" in self._reads:
            feed["candidate_rows"] = rows.astype(np.int64)
        return feed


def _described(
    label: str, method: _Served, times: Mapping[tuple[str, str], Times]
) -> dict[str, Any]:
    taken = {way: times[label, way] for way in method.ways}
    first, reference = taken[next(iter(taken))], times.get((REFERENCE, GRAPH))
    ms = [_ms(seconds) for seconds in first.processor]
    described: dict[str, Any] = {
        "ms": median(ms),
        "ms_all": ms,
        "wall_ms": _ms(median(first.passed)),
        "ratio": None if reference is None else round(first.ratio(reference), 3),
        "state_bytes": method.state_bytes,
        "difference": method.difference,
    }
    if SCORER in taken:
        described |= {way: _ms(median(of.processor)) for way, of in taken.items()}
    return described


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
