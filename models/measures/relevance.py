"""Whether a method looks at the behaviors that DIN-L would: ENCODE's RI, and hits of a search.

Both compare what a long-term module answers (`LongTerm.weights`, `LongTerm.retrieved`) with the
behavior weights of a reference, on the same requests. A search may also be held against the
attention behind it, `oracle_of`. Letters in shapes: R requests, B candidates, L behaviors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infra.arrays import F32, Array, Bools
from infra.errors import TrainingError
from models.data.batches import Batch, Gatherer, prefetch
from models.data.requests import Requests
from models.kernels.relevance import (
    NAN,
    SMOOTHING,
    hit_rate_of_retrieval,
    relevance_indicator,
)
from models.modules.layers import masked_softmax, unit
from models.modules.long_term import LongTerm
from models.modules.sequence import BehaviorSequence, Target
from models.network import Network
from models.networks.encode import Encode
from models.networks.eta import ETA
from models.networks.sim import SIM
from models.networks.twin import TWIN, search
from models.networks.ubr4ctr import UBR4CTR

PAIRS: Final = 20_000
"""Pairs of a request and a candidate that are compared, about: RI differs between pairs by about
one nat, so that its mean is known to some 0.01."""

CELLS: Final = 1 << 20
"""Weights of a batch, about: some tens of megabytes a method, whatever B and L."""


class Watched(NamedTuple):
    """A network, and what gathers the batches that it sees."""

    network: Network
    gatherer: Gatherer


@dataclass(frozen=True)
class RelevanceMeasures:
    """How a method's view of the behaviors compares with the reference's."""

    pairs: int
    """Pairs of a request and a candidate that see a behavior."""
    indicator: float
    """RI, in nats; not a number where the method weighs no behaviors."""
    least: float
    """RI of the reference itself: no method has less."""
    uniform: float
    """RI of weights that are all alike."""
    unweighted: float
    """Share of pairs whose every behavior the method leaves without weight, as a search does that
    finds nothing. RI takes them for uniform; not a number where the method weighs no behaviors."""
    smoothing: float
    """Share of uniform weights that all were mixed with."""
    hit_rate: float
    """Share of the reference's top k that the search retrieves; not a number without a search."""
    top: int
    """k of the hit rate."""
    long_pairs: int
    """Pairs that see more than k behaviors: those that the hit rate is of."""


def weighs(long: LongTerm) -> bool:
    """Whether a method tells how much each behavior counts."""
    return type(long).weights is not LongTerm.weights


def searches(long: LongTerm) -> bool:
    """Whether a method has a search stage (a GSU)."""
    return type(long).retrieved is not LongTerm.retrieved


def behavior_weights(network: Network, batch: Batch) -> F32:
    """f32[R, B, L]: how much each behavior of a batch counts for each candidate."""
    table = network.item_table()
    weights = network.long.weights(network.sequence(batch, table), network.target(batch, table))
    found: F32 = weights.detach().float().cpu().numpy()
    return found


def retrieved_behaviors(network: Network, batch: Batch) -> Bools:
    """bool[R, B, L]: which behaviors of a batch the search lets through for each candidate."""
    table = network.item_table()
    target = network.target(batch, table)
    found: Bools = network.long.retrieved(network.sequence(batch, table), target).cpu().numpy()
    return found


class Oracle(NamedTuple):
    """What a method's own attention makes of all behaviors (TWIN, section 4.5)."""

    weights: Tensor
    """f32[R, B, L]: its attention, a mean over heads."""
    relevance: Tensor
    """[R, B, L]: what it ranks behaviors by; its top k have the greatest."""


def oracle_of(long: LongTerm, sequence: BehaviorSequence, target: Target, top: int) -> Oracle:
    """The ESU of a two-stage module, or ENCODE's online attention, let loose on all behaviors.

    Several heads rank behaviors each in their own way. TWIN's pick the first k in turns (section
    4.3), so that this is how its oracle does, too; of another module the mean weight decides.

    Raises:
        TrainingError: the module has no such attention that is known here.
    """
    candidates, behaviors = target.embeddings, sequence.embeddings
    mask = sequence.mask.unsqueeze(1)
    if isinstance(long, TWIN):
        keys = long.relevance.project_sequence(sequence)
        scores = long.relevance(long.project_target(candidates), keys)
        weights = masked_softmax(scores, mask.unsqueeze(1)).mean(1)
        return Oracle(weights, search(scores, mask, top).to(weights.dtype))
    if isinstance(long, Encode):
        if long.dot is None:
            scores = unit(candidates) @ unit(behaviors).mT * long.scale
        else:
            scores = long.dot(candidates, behaviors)
        weights = masked_softmax(scores, mask)
    elif isinstance(long, SIM):
        weights = long.attention.weights(candidates, behaviors.unsqueeze(1), mask).mean(-2)
    elif isinstance(long, ETA):
        weights = masked_softmax(long.attention(candidates, behaviors), mask)
    elif isinstance(long, UBR4CTR):
        scores = candidates @ (long.metric * long.d**-0.5) @ behaviors.mT
        weights = masked_softmax(scores, mask)
    else:
        raise TrainingError(f"{type(long).__name__} has no attention that is known to be an ESU")
    return Oracle(weights, weights)


def compare(
    method: Watched,
    reference: Watched,
    requests: Requests,
    *,
    top: int = 100,
    pairs: int = PAIRS,
    smoothing: float = SMOOTHING,
    seed: int = 0,
) -> RelevanceMeasures:
    """How a method compares with a reference at one smoothing; see `compare_all`."""
    (found,) = compare_all(
        method, reference, requests, (smoothing,), top=top, pairs=pairs, seed=seed
    )
    return found


def compare_all(
    method: Watched,
    reference: Watched,
    requests: Requests,
    smoothings: Sequence[float],
    *,
    top: int = 100,
    pairs: int = PAIRS,
    seed: int = 0,
) -> list[RelevanceMeasures]:
    """A method's RI (ENCODE, section 4.6.1) and hit rate (TWIN, section 4.5) by a reference.

    The two may see different lengths of the past: what only the reference sees has no weight from
    the method.

    Args:
        method: whose long-term module is asked.
        reference: DIN-L, learned from the same data.
        requests: of which a random part is compared.
        smoothings: of RI; each gives a `RelevanceMeasures`, and both networks are asked but once.
        top: k of the hit rate. TWIN's oracle is the method's own ESU; here it is the reference's
            attention, which all methods can be held against.
        pairs: pairs of a request and a candidate, about; more are not compared.
        seed: of the choice of requests.
    """
    R, B = requests.candidates.shape
    chosen = np.random.default_rng(seed).permutation(R)[: max(1, pairs // B)]
    requests = requests.part(np.sort(chosen))
    size = max(1, CELLS // (B * max(method.gatherer.L, reference.gatherer.L, 1)))
    totals: list[list[_Part]] = [[] for _ in smoothings]
    views = zip(
        prefetch(method.gatherer.batches(requests, size)),
        prefetch(reference.gatherer.batches(requests, size)),
        strict=True,
    )
    modes = method.network.training, reference.network.training
    method.network.eval()
    reference.network.eval()
    try:
        with torch.no_grad():
            for mine, theirs in views:
                found = _compare(method.network, mine, reference.network, theirs, top, smoothings)
                for parts, part in zip(totals, found, strict=True):
                    parts.append(part)
    finally:
        method.network.train(modes[0])
        reference.network.train(modes[1])
    return [
        _whole(parts, smoothing, top) for parts, smoothing in zip(totals, smoothings, strict=True)
    ]


class _Part(NamedTuple):
    """The means of a batch, and over how many pairs."""

    pairs: int
    indicator: float
    least: float
    uniform: float
    unweighted: float
    hit_rate: float
    long_pairs: int


def _whole(parts: Sequence[_Part], smoothing: float, top: int) -> RelevanceMeasures:
    counted = [part.pairs for part in parts]
    long = [part.long_pairs for part in parts]
    return RelevanceMeasures(
        pairs=sum(counted),
        indicator=_mean([part.indicator for part in parts], counted),
        least=_mean([part.least for part in parts], counted),
        uniform=_mean([part.uniform for part in parts], counted),
        unweighted=_mean([part.unweighted for part in parts], counted),
        smoothing=smoothing,
        hit_rate=_mean([part.hit_rate for part in parts], long),
        top=top,
        long_pairs=sum(long),
    )


def _compare(
    network: Network,
    mine: Batch,
    oracle: Network,
    theirs: Batch,
    top: int,
    smoothings: Sequence[float],
) -> list[_Part]:
    """The means of one batch, at each smoothing."""
    length = max(mine.mask.shape[1], theirs.mask.shape[1])
    seen = _aligned(mine.mask.numpy(), length) | _aligned(theirs.mask.numpy(), length)
    counts = mine.weights.numpy() > 0  # candidates that merely fill their request's list do not
    mask = seen[:, None, :] & counts[:, :, None]
    truth = _aligned(behavior_weights(oracle, _on(oracle, theirs)), length)
    pairs = (truth * mask).sum(-1) > 0
    weights, unweighted, hits = None, NAN, NAN
    if weighs(network.long):
        weights = _aligned(behavior_weights(network, _on(network, mine)), length)
        unweighted = _share((weights * mask).sum(-1) <= 0, pairs)
    if searches(network.long):
        found = _aligned(retrieved_behaviors(network, _on(network, mine)), length)
        hits = hit_rate_of_retrieval(found, truth, top, mask)

    def indicator(weights: Array | None, smoothing: float) -> float:
        return NAN if weights is None else relevance_indicator(weights, truth, mask, smoothing)

    return [
        _Part(
            pairs=int(pairs.sum()),
            indicator=indicator(weights, smoothing),
            least=indicator(truth, smoothing),
            uniform=indicator(np.ones_like(truth), smoothing),
            unweighted=unweighted,
            hit_rate=hits,
            long_pairs=int((mask.sum(-1) > top).sum()),
        )
        for smoothing in smoothings
    ]


def _on(network: Network, batch: Batch) -> Batch:
    return batch.to(network.embedding.weight.device)


def _aligned(values: Array, length: int) -> Array:
    """Values [..., L] with padding in front, where all padding stands; [..., length]."""
    missing = length - values.shape[-1]
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(missing, 0)])


def _share(flags: Bools, among: Bools) -> float:
    return float(flags[among].mean()) if among.any() else NAN


def _mean(values: list[float], counts: list[int]) -> float:
    """The mean of means by their counts; those over nothing do not count."""
    total = sum(counts)
    kept = [value * count for value, count in zip(values, counts, strict=True) if count]
    return sum(kept) / total if total else NAN
