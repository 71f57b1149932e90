"""Export of a trained network into a bundle, and the proof that both say the same.

Every method exports alike: scorer.onnx is what it does online, from a stored state; golden requests
are sequences that the network's own offline stage summarized, degenerate ones among them. What the
method computes per item (a projection, a hash signature) is a graph of its own. What the services
serve carries golden sequences besides (`models.golden_sequences`); and where they read the state
themselves, their scorer.onnx begins at what they have read (`models.bundle.LONG_TERM`).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch import nn

from infra.arrays import F32, Array
from infra.errors import TrainingError
from models.bundle import (
    LONG_TERM,
    BundleContents,
    Catalog,
    GoldenRequest,
    Manifest,
    Reference,
    ReferenceEntry,
    StateTensor,
    Tensor,
    golden_differences,
    make_session,
    save_bundle,
    unserved_features,
)
from models.bundle.combinations import MOST, Combinations
from models.config import RunConfig
from models.golden_sequences import golden_sequences
from models.modules.long_term import Served
from models.modules.sequence import BehaviorSequence, Target
from models.network import Network
from models.networks.din import DINL, DotProduct
from models.runs import Run, load_run

OPSET: Final = 18
"""ONNX operator set of the graphs; onnxruntime has read it since 1.14."""

EXPORT_TOLERANCE: Final = 1e-5
"""Largest difference between a graph and the network that it was exported from."""

HALF_MAX: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ExportChecks:
    """How far the exported graphs are from the torch network."""

    requests: int
    """Scorer requests compared, degenerate ones among them."""
    max_ctr_difference: float
    max_item_difference: float
    """Largest difference of the graph over the item table; 0 where the method has none."""
    sequences: int = 0
    """Golden sequences that were written; none where the services do not serve the method."""


def export(
    run_dir: Path, out: Path, *, half: bool = False, reference: Path | None = None
) -> ExportChecks:
    """Export a finished training run into a bundle; one that is at ``out`` is replaced.

    Args:
        half: see `export_network`.
        reference: a finished run of DIN-L, whose attention the bundle takes along.

    Raises:
        TrainingError: there is no readable run, a graph disagrees with the network, or the
            reference cannot be one.
    """
    run = load_run(run_dir)
    beside = None if reference is None else load_run(reference)
    if beside is not None:
        check_reference(beside, run)
    contents, checks = export_network(
        run.network,
        run.config,
        item_ids=run.vocabulary.item_ids,
        titles=run.vocabulary.titles,
        popularity=np.array(run.vocabulary.popularity, np.float32),
        rates=np.array(run.vocabulary.rates, np.float32),
        data=run.data,
        metrics=run.metrics,
        half=half,
    )
    if beside is not None:
        contents = with_reference(contents, beside)
    save_bundle(contents, out)
    return checks


def export_network(
    network: Network,
    config: RunConfig,
    *,
    item_ids: Sequence[str],
    titles: Sequence[str],
    popularity: F32,
    rates: F32 | None = None,
    data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    half: bool = False,
) -> tuple[BundleContents, ExportChecks]:
    """The contents of a network's bundle, and how well its graphs agree with it.

    Items without a training behavior are left out where the method allows: the network has never
    met them.

    Args:
        item_ids, titles: n + 1 entries, row 0 ("") for unknown items.
        popularity: f32[n + 1], behaviors per million.
        rates: f32[n + 1], the items' rates; for a network that sees them.
        half: have what is stored of a user's interests kept as float16.

    Raises:
        TrainingError: a graph differs from the network by more than EXPORT_TOLERANCE, or the
            services do not serve the method, so that nothing is stored that could be ``half``.
        BundleIncompatible: the items' ids are none that a bundle can hold.
    """
    network = network.cpu().eval()
    seen = Combinations.of(network.inputs.schema.behaviors, len(network.inputs.actions))
    if seen.number > MOST:
        raise TrainingError(
            f"schema.behavior = {', '.join(seen.heights)} has {seen.number:,} combinations, and a"
            f" bundle {MOST:,} at most; train without one of them"
        )
    served = served_as(network, half=half)
    width = served.finished if served is not None else 0
    finished = width > 0
    if half and not (served and served.stored):
        raise TrainingError(
            "half is for interests that the services store, and they store none of this run;"
            " leave it out"
        )
    known = [0, *(int(row) for row in np.flatnonzero(popularity[1:] > 0) + 1)]
    if "rows" in network.long.reads:  # its graph holds something of each, by row
        known = list(range(len(item_ids)))
    table = network.item_table().detach()
    embeddings = table.numpy()[known].astype(np.float32)
    golden = golden_requests(network, table, config.seed, finished=finished)
    if not all(np.isfinite(request.ctr.array()).all() for request in golden):
        raise TrainingError("the network's CTRs are no numbers: it has diverged, train again")
    scorer_model = export_scorer(network, table, config.seed, finished=finished)
    item_model = export_item_graph(network)
    differences = golden_differences(make_session(scorer_model), golden, network.sampling_rate)
    checks = ExportChecks(
        requests=len(golden),
        max_ctr_difference=float(np.max(list(differences.values()))),
        max_item_difference=_compare_items(item_model, network, embeddings),
    )
    # np.max, unlike max, does not lose a NaN on the way.
    worst = float(np.max([checks.max_ctr_difference, checks.max_item_difference]))
    if not worst <= EXPORT_TOLERANCE:
        raise TrainingError(
            f"the exported graphs differ from the network by {worst:.2g} "
            f"(at most {EXPORT_TOLERANCE:g}); the network may have diverged, train again"
        )
    catalog = Catalog.of(
        [item_ids[row] for row in known], [titles[row] for row in known], popularity[known]
    )
    manifest = Manifest(
        system=str(config.long_term.__struct_config__.tag),
        name=config.name,
        n_items=len(known) - 1,
        d=network.config.d,
        L=config.long_term.L,
        M=network.config.M,
        offline=served.offline if served else None,
        tables=served.tables if served else {},
        u=network.tower.user.in_features,
        c=len(network.inputs.cross_features),
        user_features=network.inputs.user_features,
        cross_features=network.inputs.cross_features,
        rates=network.inputs.rates,
        long_term=msgspec.to_builtins(config.long_term),
        state=state_tensors(network, table, width),
        schema=_schema(network),
        actions=network.inputs.actions,
        sampling_rate=network.sampling_rate,
        seed=config.seed,
        training=msgspec.to_builtins(config),
        data=dict(data or {}),
        metrics=dict(metrics or {}),
    )
    if served is not None:
        stored = served.stored | manifest.of_features() if served.stored else {}
        manifest = msgspec.structs.replace(manifest, stored=stored)
    if half and served and not np.abs(embeddings).max() * served.summed < HALF_MAX:
        raise TrainingError("embeddings are too large for float16; leave half out, or train again")
    own_rates = None
    if manifest.rates is not None:
        assert rates is not None  # a network that sees rates comes with them
        own_rates = rates[known]
    tables = {}
    if manifest.tables:
        assert item_model is not None
        names = list(manifest.tables)
        computed = make_session(item_model).run(names, {"embeddings": embeddings})
        tables = {
            name: table.astype(manifest.tables[name].dtype, copy=False)
            for name, table in zip(names, computed, strict=True)
        }
    contents = BundleContents(
        manifest=manifest,
        catalog=catalog,
        embeddings=embeddings,
        scorer_model=scorer_model,
        golden=golden,
        projection_model=item_model,
        tables=tables,
        sequences=golden_sequences(network, manifest, catalog, known, own_rates)
        if manifest.offline
        else [],
        attributes=_attributes(network, known),
        rates=own_rates,
    )
    return contents, replace(checks, sequences=len(contents.sequences))


def check_reference(reference: Run, run: Run) -> None:
    """Refuse a run whose attention cannot be held against another's live.

    Raises:
        TrainingError: it is not DIN-L with scores by dot product, learned from other data, or sees
            more than items and actions, or another number of behaviors.
    """
    named, long = f"the reference {reference.config.name}", reference.network.long
    if not isinstance(long, DINL) or not isinstance(long.attention, DotProduct):
        raise TrainingError(f'{named} is not a run of din-l with attention = "dot"; train one')
    if (reference.vocabulary.item_ids, reference.inputs.actions) != (
        run.vocabulary.item_ids,
        run.inputs.actions,
    ):
        raise TrainingError(
            f"{named} learned from other data than {run.config.name}; train it on the same"
        )
    if unserved := set(reference.inputs.schema.behaviors) - {"action"}:
        raise TrainingError(
            f"{named} sees schema.behavior = {', '.join(sorted(unserved))}, which live measures"
            " do not have; train it without"
        )
    theirs, ours = reference.config.long_term.L, run.config.long_term.L
    if theirs != ours:
        raise TrainingError(
            f"{named} sees L = {theirs} behaviors, {run.config.name} {ours}; train it with as many"
        )


@torch.no_grad()
def with_reference(contents: BundleContents, reference: Run) -> BundleContents:
    """A bundle that takes the attention of a run of DIN-L along, on the bundle's own items."""
    network = reference.network.cpu()
    long = network.long
    assert isinstance(long, DINL)
    assert isinstance(long.attention, DotProduct)
    rows = {item: row for row, item in enumerate(reference.vocabulary.item_ids)}
    known = [rows[item] for item in contents.catalog.item_ids]
    table = network.item_table()[known]
    actions = network.feature_tables().get("action")
    entry = ReferenceEntry(reference.config.name, network.config.d, actions is not None)
    return replace(
        contents,
        manifest=msgspec.structs.replace(contents.manifest, reference=entry),
        reference=Reference(
            queries=(table @ long.attention.metric * network.config.d**-0.5).numpy(),
            keys=table.numpy(),
            actions=None if actions is None else actions.numpy(),
        ),
    )


def served_as(network: Network, *, half: bool = False) -> Served | None:
    """How the services serve a network; None: they do not, or not as it is configured."""
    schema = network.inputs.schema
    served = network.long.served(half=half, feature_tables=network.feature_tables())
    if served is None or schema.user:
        return None
    return None if unserved_features(schema.behaviors, stored=bool(served.stored)) else served


def _schema(network: Network) -> dict[str, Any]:
    """The schema as the network has it: no bundle asks the data."""
    inputs = network.inputs
    positive = () if inputs.rates is None else inputs.rates.positive
    schema = msgspec.structs.replace(
        inputs.schema, behavior=inputs.schema.behaviors, positive=positive
    )
    plain: dict[str, Any] = msgspec.to_builtins(schema)
    return plain


def _attributes(network: Network, known: list[int]) -> bytes | None:
    """Embeddings of user attributes and behavior features, and the items' categories, as npz."""
    arrays: dict[str, Any] = {}
    for name, weight in network.user_tables().items():
        arrays[f"user.{name}"] = weight.detach().numpy()
    for name, weight in network.feature_tables().items():
        arrays[f"behavior.{name}"] = weight.detach().numpy()
    if network.inputs.schema.category:
        arrays["categories"] = network.inputs.categories[known]
    if not arrays:
        return None
    written = BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


class _Online(nn.Module):
    """What becomes scorer.onnx: one user, B candidates, CTRs; inputs ordered as by `_inputs`."""

    def __init__(self, network: Network, state: Sequence[str]) -> None:
        super().__init__()
        self.network, self.state = network, tuple(state)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        state = dict(zip(self.state, inputs, strict=False))
        recent, recent_mask, user, candidates, cross, *rest = inputs[len(self.state) :]
        read = dict(zip(sorted(self.network.long.reads), rest, strict=True))
        none = candidates.new_zeros(candidates.shape[:-1]).long()
        target = Target(candidates, read.get("categories", none), read.get("rows", none))
        others = recent, recent_mask, user, target, cross
        if LONG_TERM in state:
            long = self.network.long.finish(state[LONG_TERM])
            return self.network.ctrs(self.network.logits_of(long, *others))
        return self.network.ctrs(self.network.logits(state, *others))


class _PerItem(nn.Module):
    """What becomes the graph over the item table: embeddings[n, d] -> what is computed of each."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.long = network.long

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.long.per_item(embeddings).values())


def export_item_graph(network: Network) -> bytes | None:
    """The graph over the item table (ENCODE: Eq. 4, SDIM: Eq. 7), or None without one."""
    example = torch.zeros(3, network.config.d)
    with torch.no_grad():
        names = list(network.long.per_item(example))
    if not names:
        return None
    rows = torch.export.Dim("n")
    return _export(_PerItem(network), {"embeddings": example}, ({0: rows},), names)


def export_scorer(
    network: Network, table: torch.Tensor, seed: int = 0, *, finished: bool = False
) -> bytes:
    """The bytes of scorer.onnx; axes that depend on a user's behaviors or on B are dynamic.

    Args:
        finished: begin at the long-term vectors (`LONG_TERM`), not at the state.
    """
    rng = np.random.default_rng(seed)
    M = network.config.M
    few, more = _sequence(network, table, rng, 120, 3), _sequence(network, table, rng, 130, 5)
    one = _inputs(network, table, few, rng, M - 1, 7, finished=finished)
    two = _inputs(network, table, more, rng, M, 8, finished=finished)
    candidates = torch.export.Dim("candidates")
    named = dict.fromkeys(
        (LONG_TERM, "candidates", "cross", "candidate_categories", "candidate_rows"), candidates
    )
    if M > 1:  # one that is always there is no axis to keep open
        recent = torch.export.Dim("recent", min=1, max=M)
        named |= dict.fromkeys(("recent", "recent_mask"), recent)
    sized: dict[tuple[int, int], Any] = {}
    dynamic: list[dict[int, Any] | None] = []
    for name in one:
        axes = {}
        for axis, sizes in enumerate(zip(one[name].shape, two[name].shape, strict=True)):
            if sizes[0] != sizes[1]:
                if name not in named:
                    sized.setdefault(sizes, torch.export.Dim(f"state_{len(sized)}", min=1))
                axes[axis] = named.get(name) or sized[sizes]
        dynamic.append(axes or None)
    state = network_state(network, table, finished=finished)
    return _export(_Online(network, state), one, (tuple(dynamic),), ["ctr"])


def network_state(network: Network, table: torch.Tensor, *, finished: bool) -> list[str]:
    """The names of the inputs that hold the state, or what was read of it."""
    if finished:
        return [LONG_TERM]
    rng = np.random.default_rng(0)
    return list(_summary(network, _sequence(network, table, rng, 1, 0)))


def state_tensors(network: Network, table: torch.Tensor, width: int) -> dict[str, StateTensor]:
    """Type and shape of the inputs that `network_state` names, -1 for axes that depend on the
    user's behaviors.

    Args:
        width: of what the services find (`models.modules.long_term.Served.finished`); 0: nothing.
    """
    if width:
        return {LONG_TERM: StateTensor("float32", ("B", width))}
    rng = np.random.default_rng(0)
    short = _summary(network, _sequence(network, table, rng, 120, 3))
    long = _summary(network, _sequence(network, table, rng, 130, 5))
    return {
        name: StateTensor(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(
                size if size == other else -1
                for size, other in zip(tensor.shape, long[name].shape, strict=True)
            ),
        )
        for name, tensor in short.items()
    }


def golden_requests(
    network: Network, table: torch.Tensor, seed: int, *, finished: bool = False
) -> list[GoldenRequest]:
    """Random and degenerate requests with the network's own CTRs."""
    rng = np.random.default_rng(seed)
    M = network.config.M

    def make(length: int, newer: int, recent: int, candidates: int) -> dict[str, torch.Tensor]:
        return inputs_of(_sequence(network, table, rng, length, newer), rng, recent, candidates)

    inputs_of = partial(_inputs, network, table, finished=finished)
    nothing = inputs_of(_sequence(network, table, rng, 1, 0, present=False), rng, 1, 3)
    nothing["recent_mask"] = torch.zeros_like(nothing["recent_mask"])
    nothing["user"] = torch.zeros_like(nothing["user"])
    alike = inputs_of(_sequence(network, table, rng, 8, 0, alike=True), rng, 3, 5)
    alike["recent"] = table[1:2].expand_as(alike["recent"]).clone()
    alike["candidates"] = table[1:2].expand_as(alike["candidates"]).clone()
    padded = inputs_of(_sequence(network, table, rng, 30, 0, pad=20), rng, M, 6)
    padded["recent_mask"][: max(M - 2, 1)] = 0
    cases = {
        "full": make(min(max(network.config.M, 200), 1000), 0, M, 20),
        "newer behaviors": make(60, 10, M, 10),
        "no behavior": nothing,
        "one behavior": make(1, 0, 1, 4),
        "one candidate": make(50, 0, M, 1),
        "padded": padded,
        "all alike": alike,
    }
    state = network_state(network, table, finished=finished)
    online = _Online(network, state)
    requests = []
    for name, inputs in cases.items():
        with torch.no_grad():
            ctr = online(*inputs.values()).numpy()
        tensors = {key: Tensor.of(values.numpy()) for key, values in inputs.items()}
        requests.append(GoldenRequest(name, tensors, Tensor.of(ctr)))
    return requests


def _sequence(
    network: Network,
    table: torch.Tensor,
    rng: np.random.Generator,
    length: int,
    newer: int,
    *,
    present: bool = True,
    alike: bool = False,
    pad: int = 0,
) -> BehaviorSequence:
    """One user's random behaviors, as a batch of one."""
    rows = torch.from_numpy(rng.integers(1, network.inputs.n_items + 1, (1, length)))
    if alike:
        rows[:] = 1
    mask = torch.full((1, length), present)
    mask[:, :pad] = False
    heights = network.inputs.heights
    features: dict[str, torch.Tensor] = {
        name: torch.from_numpy(rng.integers(0, heights[f"behavior.{name}"], (1, length)))
        for name in network.inputs.schema.behaviors
    }
    return BehaviorSequence(
        rows,
        mask,
        table,
        newer=(torch.arange(length) >= length - newer).unsqueeze(0) & mask,
        features=features,
        feature_tables=network.feature_tables(),
        categories=torch.from_numpy(network.inputs.categories),
    )


def _summary(network: Network, sequence: BehaviorSequence) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {name: tensor[0] for name, tensor in network.long.summarize(sequence).items()}


def _inputs(
    network: Network,
    table: torch.Tensor,
    sequence: BehaviorSequence,
    rng: np.random.Generator,
    M: int,
    B: int,
    *,
    finished: bool,
) -> dict[str, torch.Tensor]:
    """A request on a sequence; embeddings are rows of the network's own table."""
    n = len(table)
    M = min(max(M, 1), network.config.M)
    candidates = torch.from_numpy(rng.integers(0, n, B))
    categories = torch.from_numpy(network.inputs.categories)[candidates]
    inputs = _summary(network, sequence)
    if finished:
        target = Target(table[candidates], categories, candidates)
        inputs = {LONG_TERM: network.long.find(inputs, target)}
    inputs |= {
        "recent": table[torch.from_numpy(rng.integers(0, n, M))],
        "recent_mask": torch.ones(M),
        "user": torch.from_numpy(rng.random(network.tower.user.in_features, np.float32)),
        "candidates": table[candidates],
        "cross": torch.from_numpy(rng.random((B, len(network.inputs.cross_features)), np.float32)),
    }
    read = {"categories": categories, "rows": candidates}
    inputs |= {f"candidate_{name}": read[name] for name in sorted(network.long.reads)}
    return {name: tensor.detach().clone() for name, tensor in inputs.items()}


def _export(
    module: nn.Module, inputs: dict[str, torch.Tensor], dynamic: tuple[Any, ...], outputs: list[str]
) -> bytes:
    with _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    # Names of source files and stack traces would make the bytes depend on where this ran.
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence for torch's exporter, which warns of every package that it could support and that is
    not installed, of axes that share a name (as ours are meant to), and of its own dependencies'
    deprecations.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _compare_items(model: bytes | None, network: Network, embeddings: F32) -> float:
    if model is None:
        return 0.0
    with torch.no_grad():
        expected = network.long.per_item(torch.from_numpy(embeddings))
    computed = make_session(model).run(list(expected), {"embeddings": embeddings})
    differences = map(_difference, computed, expected.values())
    return float(np.max(list(differences)))


def _difference(computed: Array, expected: torch.Tensor) -> float:
    return float(np.abs(computed - expected.numpy()).max())
