"""Which behaviors the methods look at: ENCODE's Table 3, TWIN's Figure 4 and SDIM's Figure 2.

Every measurement takes finished runs of one setup and its samples, and gives plain JSON data. None
of them trains. Letters in shapes: R requests, B candidates, L behaviors, d embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from infra.arrays import F64, I64
from lifelong.evaluate.run import plain
from models.data.batches import Gatherer, prefetch
from models.data.requests import Requests
from models.data.splits import Split
from models.measures.relevance import (
    CELLS,
    RelevanceMeasures,
    Watched,
    compare_all,
    oracle_of,
    searches,
    weighs,
)
from models.modules.layers import unit
from models.modules.long_term import LongTerm
from models.modules.sequence import BehaviorSequence, Target
from models.networks.sdim import SDIM, SDIMConfig
from models.networks.sdim_expected import collision_probability
from models.prediction import make_gatherer
from models.runs import Run, load_run

SIZES: Final = (0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100)
"""Sizes of a search, as multiples of the top k; TWIN's Figure 4 goes from 0.1 to 100."""

PAPERS_TOP: Final = 100
"""k of TWIN's Figure 4."""

NO_WEIGHTS: Final = "it weighs no behaviors"
NO_SEARCH: Final = "it has no search stage"
ALL_SHORT: Final = "no request sees more behaviors than the top"


class AttentionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the measurements in this module."""

    reference: str = "DIN-L"
    """Label of the run whose attention is the truth of RI."""
    smoothings: tuple[float, ...] = (0.01, 0.1, 0.001)
    """Shares of uniform weights that RI mixes all with; "ri" is that of the first. What methods
    with a search get depends on it (`models.kernels.relevance.relevance_indicator`)."""
    top: int = 0
    """k of TWIN's Figure 4, which has 100 of 10,000 behaviors; 0: the most that a search among the
    runs lets through."""
    sizes: tuple[int, ...] = ()
    """Sizes that the search is tried with; (): `SIZES` times the top, and all behaviors."""
    pairs: int = 10_000
    """Pairs of a request and a candidate that are looked at, about."""
    bins: int = 20
    """Bins of the cosine between -1 and 1."""
    points: int = 101
    """Points of a curve."""
    taus: tuple[int, ...] = (1, 2, 3, 5, 10)
    """Widths of SDIM's signatures (SDIM, section 6.3.2)."""
    temperature: float = 0.5
    """Target attention is exp(cosine / temperature) (SDIM, section 4.2.1)."""
    beta: float = 20.0
    """Scaling factor of ENCODE's Eq. 9."""
    hashes: tuple[int, ...] = (24, 36, 48, 60, 72, 90, 120)
    """Numbers of hash functions (SDIM, section 6.3.1)."""
    draws: int = 5
    """Times that the hash functions are drawn."""
    seed: int = 0
    """Seed of the choice of requests, and of the hash functions."""


def measure_relevance(
    runs: Mapping[str, Path], samples: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """RI of every run (ENCODE, section 4.6.1 and Table 3), by the attention of DIN-L.

    A second run of DIN-L, of another seed, says how much of an RI is chance: it too lies above the
    least.

    Args:
        runs: trained runs by label; one has the label ``reference``.
        samples: whose test is looked at.
        options: of `AttentionOptions`.

    Returns:
        "least" (RI of the reference itself) and "uniform" (of equal weights), each, as a method's
        "ri", at the first smoothing; "by_smoothing" has both for every smoothing. "methods" has by
        label "ri", or None and a "reason"; "ri_by_smoothing"; "unweighted", the share of pairs for
        which a search finds nothing, so that they count as uniform; and "hit_rate", the share of
        the reference's top k that a search lets through.
    """
    settings = _settings(options)
    loaded = {label: load_run(path) for label, path in runs.items()}
    top = _top(loaded.values(), settings)
    reference = _watched(loaded[settings.reference], samples)

    def compared(run: Run) -> list[RelevanceMeasures]:
        return compare_all(
            _watched(run, samples),
            reference,
            samples.test,
            settings.smoothings,
            top=top,
            pairs=settings.pairs,
            seed=settings.seed,
        )

    found = {label: compared(run) for label, run in loaded.items() if weighs(run.network.long)}
    bounds = [
        {"smoothing": by.smoothing, "least": plain(by.least), "uniform": plain(by.uniform)}
        for by in found[settings.reference]
    ]
    return {
        "reference": settings.reference,
        "pairs": found[settings.reference][0].pairs,
        "top": top,
        **bounds[0],
        "by_smoothing": bounds,
        "methods": {label: _indicator(found.get(label)) for label in loaded},
    }


def _indicator(found: list[RelevanceMeasures] | None) -> dict[str, Any]:
    if found is None:
        return {"ri": None, "reason": NO_WEIGHTS}
    return {
        "ri": plain(found[0].indicator),
        "ri_by_smoothing": [plain(each.indicator) for each in found],
        "unweighted": plain(found[0].unweighted),
        "hit_rate": plain(found[0].hit_rate),
    }


def measure_consistency(
    runs: Mapping[str, Path], samples: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Whether a search finds what the attention behind it would attend to (TWIN, Figure 4).

    Each two-stage run is its own oracle: its ESU ranks all behaviors, and the first k are the real
    top k; behaviors that tie for its last places are as good as each other. The same search is then
    tried with other sizes, with the weights that were learned.

    Args:
        runs: trained runs by label.
        samples: whose test is looked at; requests that see no more than k behaviors are left out.
        options: of `AttentionOptions`.

    Returns:
        "top" (k) and "methods": by label, lists with an entry for each of "sizes",

        - "hits": how many of the top k are among what a search of that size returns,
        - "returned": how many behaviors it returns, fewer where it finds no more,
        - "filled": the hits if the newest behaviors then make up the number,
        - "chance": the hits of as many behaviors at random,

        and numbers: "hits_at_top", "returned_at_top" and "filled_at_top" at the size k;
        "weight_at_top", the share of the ESU's attention to all behaviors that falls on what is
        then returned, and "weight_best", the most that k behaviors have; "pairs" of a request and a
        candidate. Without a search "hits" is None and there is a "reason".
    """
    settings = _settings(options)
    loaded = {label: load_run(path) for label, path in runs.items()}
    top = _top(loaded.values(), settings)
    methods = {
        label: _consistency(run, samples, top, settings)
        if searches(run.network.long)
        else {"hits": None, "reason": NO_SEARCH}
        for label, run in loaded.items()
    }
    return {"top": top, "methods": methods}


def weight_curves(options: Mapping[str, Any]) -> dict[str, Any]:
    """Behavior weights as functions of the cosine, as the papers have them (SDIM, Figure 2).

    SDIM's are expected collision probabilities (SDIM, Eq. 13), which target attention's
    exp(cosine / temperature) is held against; ENCODE's is Eq. 9 as written, exp(cosine / beta), and
    as it is sharp, exp(cosine * beta). Each is 1 at the cosine 1.

    Returns:
        "cosine", and "curves" by label.
    """
    settings = _settings(options)
    cosine = torch.linspace(-1, 1, settings.points, dtype=torch.float64)
    curves = {f"SDIM, τ = {tau}": collision_probability(cosine, tau) for tau in settings.taus}
    scales = {
        "target attention": 1 / settings.temperature,
        f"ENCODE, ÷ {settings.beta:g}": 1 / settings.beta,
        f"ENCODE, × {settings.beta:g}": settings.beta,  # noqa: RUF001  # as people write it
    }
    curves |= {label: torch.exp((cosine - 1) * scale) for label, scale in scales.items()}
    return {
        "cosine": cosine.tolist(),
        "curves": {label: curve.tolist() for label, curve in curves.items()},
    }


def measure_weights(
    runs: Mapping[str, Path], samples: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The weights that trained runs give behaviors, by cosine to the candidate (SDIM, Figure 2).

    The cosine is that of the two items' embeddings in the run's own network: a candidate has no
    behavior features to be alike in. Unknown items have no direction and are left out.

    Args:
        runs: trained runs by label.
        samples: whose test is looked at.
        options: of `AttentionOptions`.

    Returns:
        "edges" of the bins, and "methods": by label, lists with an entry a bin, "weight" (the mean
        weight of a behavior times the number of behaviors: 1 is uniform; None in an empty bin) and
        "behaviors" (the bin's share of them). SDIM with tau > 0 also has "expected", that mean by
        Eq. 15, and "sampling": for each number of hash functions "m" the mean absolute error of a
        behavior's collision probability ("probability") and of its share of them, times the number
        of behaviors ("weight").
    """
    settings = _settings(options)
    loaded = {label: load_run(path) for label, path in runs.items()}
    methods = {
        label: _weights(run, samples, settings)
        if weighs(run.network.long)
        else {"weight": None, "reason": NO_WEIGHTS}
        for label, run in loaded.items()
    }
    edges = np.linspace(-1, 1, settings.bins + 1)
    return {"edges": edges.tolist(), "methods": methods}


def searching(run: Run, k: int) -> LongTerm:
    """The run's module with its learned weights, as if its search let ``k`` behaviors through."""
    config = msgspec.structs.replace(run.config.long_term, k=k)
    long = config.build(run.network.config.d, run.inputs)
    long.load_state_dict(run.network.long.state_dict())
    return long.eval()


@torch.no_grad()
def _consistency(run: Run, samples: Split, top: int, settings: AttentionOptions) -> dict[str, Any]:
    gatherer = make_gatherer(run.config, samples, run.inputs)
    long_enough = np.minimum(samples.history(samples.test), gatherer.L) > top
    requests = _some(samples.test, np.flatnonzero(long_enough), settings)
    sizes = settings.sizes or sizes_of(top, gatherer.L)
    if not len(requests.cut):
        return {"hits": None, "reason": ALL_SHORT}
    modules = {size: searching(run, size) for size in {*sizes, top}}
    sums: dict[str, dict[int, float]] = {
        name: dict.fromkeys(modules, 0.0) for name in ("hits", "returned", "filled", "chance")
    }
    weight_at_top = weight_best = 0.0
    pairs = 0
    for seen in _views(run, gatherer, requests):
        oracle = oracle_of(run.network.long, seen.sequence, seen.target, top)
        real = _RealTop.of(oracle.relevance, seen.mask, top)
        length = seen.mask.sum(-1)
        pairs += int(seen.pairs.sum())
        best = oracle.weights.topk(top).values.sum(-1)
        weight_best += seen.total(best)
        for size, module in modules.items():
            found = module.retrieved(seen.sequence, seen.target) & seen.mask
            sums["hits"][size] += seen.total(real.hits(found))
            sums["returned"][size] += seen.total(found.sum(-1))
            sums["filled"][size] += seen.total(real.hits(_filled(found, seen.mask, size)))
            sums["chance"][size] += seen.total(top * (size / length).clamp(max=1.0))
            if size == top:
                weight_at_top += seen.total((oracle.weights * found).sum(-1))
    means = {
        name: {size: total / pairs for size, total in each.items()} for name, each in sums.items()
    }
    return {
        "pairs": pairs,
        "sizes": list(sizes),
        **{name: [each[size] for size in sizes] for name, each in means.items()},
        **{f"{name}_at_top": means[name][top] for name in ("hits", "returned", "filled")},
        "weight_at_top": weight_at_top / pairs,
        "weight_best": weight_best / pairs,
    }


def sizes_of(top: int, L: int) -> tuple[int, ...]:
    """Sizes that a search of the top k among L behaviors is tried with.

    >>> sizes_of(20, 200)
    (2, 4, 7, 10, 15, 20, 30, 40, 60, 100, 140, 200)
    """
    below = {max(1, round(top * share)) for share in SIZES}
    return (*sorted(size for size in below if size < L), L)


class _RealTop(NamedTuple):
    """The oracle's choice of k, for each of R x B pairs."""

    above: Tensor
    """bool[R, B, L]: what is in it for sure."""
    tied: Tensor
    """bool[R, B, L]: what ties for its last places."""
    places: Tensor
    """i64[R, B]: how many last places there are."""

    @classmethod
    def of(cls, relevance: Tensor, mask: Tensor, top: int) -> _RealTop:
        relevance = relevance.masked_fill(~mask, -math.inf)
        least = relevance.topk(top).values[..., -1:]
        above = relevance > least
        return cls(above, (relevance == least) & mask, top - above.sum(-1))

    def hits(self, found: Tensor) -> Tensor:
        """How many of the k are found, i64[R, B]; of those that tie any will do."""
        tied = torch.minimum((found & self.tied).sum(-1), self.places)
        return (found & self.above).sum(-1) + tied


def _filled(found: Tensor, mask: Tensor, size: int) -> Tensor:
    """What is found, and the newest of the rest that make up the size; bool[R, B, L]."""
    missing = size - found.sum(-1, keepdim=True)
    rest = mask & ~found
    newest_first = rest.flip(-1).cumsum(-1).flip(-1)
    return found | (rest & (newest_first <= missing))


@torch.no_grad()
def _weights(run: Run, samples: Split, settings: AttentionOptions) -> dict[str, Any]:
    gatherer = make_gatherer(run.config, samples, run.inputs)
    requests = _some(samples.test, np.arange(len(samples.test.cut)), settings)
    long = run.network.long
    tau = long.config.tau if isinstance(long, SDIM) else 0
    sampling = _Sampling(run, tau, settings) if tau else None
    behaviors, weight, expected = np.zeros((3, settings.bins))
    for seen in _views(run, gatherer, requests):
        sequence, target = seen.sequence, seen.target
        length = seen.mask.sum(-1, keepdim=True)
        cosine = unit(target.embeddings) @ unit(sequence.items).mT
        known = seen.mask & (target.rows > 0).unsqueeze(-1) & (sequence.rows > 0).unsqueeze(1)
        known &= seen.pairs.unsqueeze(-1)
        bins = (
            ((cosine[known].double() + 1) / 2 * settings.bins).long().clamp(max=settings.bins - 1)
        )
        behaviors += _summed(bins, torch.ones_like(bins), settings)
        weight += _summed(bins, (long.weights(sequence, target) * length)[known], settings)
        if sampling is not None:
            chances = collision_probability(cosine, tau)
            expected += _summed(bins, (_shares(chances, seen.mask) * length)[known], settings)
            sampling.add(seen, chances)
    found: dict[str, Any] = {
        "weight": _means(weight, behaviors),
        "behaviors": (behaviors / max(behaviors.sum(), 1)).tolist(),
    }
    if sampling is not None:
        found |= {"expected": _means(expected, behaviors), "sampling": sampling.errors()}
    return found


def _summed(bins: Tensor, values: Tensor, settings: AttentionOptions) -> F64:
    """The sum of values [N] in each bin."""
    return np.bincount(bins.numpy(), values.double().numpy(), settings.bins).astype(np.float64)


def _means(sums: F64, counts: F64) -> list[float | None]:
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return [total / count if count else None for total, count in pairs]


class _Sampling:
    """How far shares of colliding signatures are from their expectation (SDIM, section 6.3.1)."""

    def __init__(self, run: Run, tau: int, settings: AttentionOptions) -> None:
        # The first of many groups of hash functions are as good as a draw of fewer.
        self.groups = [max(1, m // tau) for m in settings.hashes]
        config = SDIMConfig(m=max(self.groups) * tau, tau=tau)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.modules = [
                config.build(run.network.config.d, run.inputs) for _ in range(settings.draws)
            ]
        self.tau = tau
        self.probability = np.zeros(len(self.groups))
        self.weight = np.zeros(len(self.groups))
        self.behaviors = self.pairs = 0

    def add(self, seen: _View, expected: Tensor) -> None:
        """Add a batch, whose expected collision probabilities are f32[R, B, L]."""
        mask = seen.mask & seen.pairs.unsqueeze(-1)
        shares = _shares(expected, seen.mask)
        self.behaviors += int(mask.sum())
        self.pairs += int(mask.any(-1).sum())
        for module in self.modules:
            candidates = module.signatures(seen.target.embeddings)
            behaviors = module.signatures(seen.sequence.table)[seen.sequence.rows]
            together = torch.zeros_like(expected)
            for group in range(max(self.groups)):
                together += candidates[..., group, None] == behaviors[:, None, :, group]
                for place, groups in enumerate(self.groups):
                    if groups == group + 1:
                        found = together / groups
                        self.probability[place] += _distance(found, expected, mask)
                        self.weight[place] += _distance(_shares(found, seen.mask), shares, mask)

    def errors(self) -> dict[str, Any]:
        draws = len(self.modules)
        return {
            "tau": self.tau,
            "m": [groups * self.tau for groups in self.groups],
            "probability": (self.probability / max(self.behaviors * draws, 1)).tolist(),
            "weight": (self.weight / max(self.pairs * draws, 1)).tolist(),
        }


def _distance(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    return float(((found - expected).abs() * mask).double().sum())


def _shares(weights: Tensor, mask: Tensor) -> Tensor:
    """Weights [R, B, L] divided by their sum over a pair's behaviors; uniform where that is 0."""
    weights = weights * mask
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, mask.to(weights.dtype))
    shares: Tensor = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    return shares


class _View(NamedTuple):
    """A batch as a network sees it."""

    sequence: BehaviorSequence
    target: Target
    mask: Tensor
    """bool[R, B, L]: where there is a behavior."""
    pairs: Tensor
    """bool[R, B]: candidates that count, and do not merely fill their request's list."""

    def total(self, values: Tensor) -> float:
        """The sum of values [R, B] over the pairs that count."""
        return float(values[self.pairs].double().sum())


def _views(run: Run, gatherer: Gatherer, requests: Requests) -> Iterator[_View]:
    size = max(1, CELLS // (requests.candidates.shape[1] * max(gatherer.L, 1)))
    network = run.network
    table = network.item_table()
    for batch in prefetch(gatherer.batches(requests, size)):
        sequence, target = network.sequence(batch, table), network.target(batch, table)
        counts = batch.weights > 0
        mask = batch.mask.unsqueeze(1).expand(-1, counts.shape[1], -1)
        yield _View(sequence, target, mask, counts)


def _some(requests: Requests, rows: I64, settings: AttentionOptions) -> Requests:
    """A random part of some requests, as many as make up the pairs."""
    wanted = max(1, settings.pairs // requests.candidates.shape[1])
    chosen = np.random.default_rng(settings.seed).permutation(rows)[:wanted]
    return requests.part(np.sort(chosen))


def _top(runs: Iterable[Run], settings: AttentionOptions) -> int:
    searched = [int(getattr(run.config.long_term, "k", 0)) for run in runs]
    return settings.top or max(searched, default=0) or PAPERS_TOP


def _watched(run: Run, samples: Split) -> Watched:
    return Watched(run.network, make_gatherer(run.config, samples, run.inputs))


def _settings(options: Mapping[str, Any]) -> AttentionOptions:
    return msgspec.convert(dict(options), AttentionOptions)
