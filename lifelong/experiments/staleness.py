"""What freshness is worth: stale interests, and interests that were only ever started warm.

Both measurements take finished runs and requests of the test, and hand back plain JSON data. The
first asks what a service loses that reclusters late, and how much of it attending to the newer
behaviors brings back. The second asks whether hundreds of warm starts in a row (`streams`) drift
away from clusterings made afresh.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from extractor.clustering import WARM_ITERATIONS
from extractor.state import InterestState
from lifelong.experiments.streams import (
    FIGURES,
    Figures,
    Flags,
    Items,
    States,
    Stream,
    behaviors_of,
)
from models import training
from models.batches import Batch, Gatherer
from models.data import Requests
from models.interactions import Floats, Ints
from models.long_term import State
from models.metrics import auc, gauc, paired_bootstrap
from models.network import Network
from models.networks.encode import Encode
from models.protocols import Split
from scorer.ranking import MAX_NEWER

Doubles = npt.NDArray[np.float64]
Variant = Literal["longer", "attended", "recent", "unseen"]

COMPARED: Final[tuple[tuple[Variant, str], ...]] = (
    ("attended", "fresh"),
    ("attended", "longer"),
    ("attended", "recent"),
    ("recent", "fresh"),
    ("unseen", "fresh"),
)
"""Whose difference from what is told, with its interval."""

RESAMPLED_GAUC: Final = 1000
"""Resamplings of GAUC, which ranks each user once: as good as free."""


class StalenessOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `measure_staleness` is told."""

    newer: tuple[int, ...] = (10, 100, 1000)
    """n: by how many behaviors interests are old."""
    between: tuple[int, ...] = (1, 3, 30, 300)
    """More of them, for a curve: without the differences, which are what takes time."""
    at_least: int = 50
    """Requests that must have more than n earlier behaviors."""
    requests: int = 3000
    """Requests of the test, at most (drawn at random)."""
    replicates: int = 200
    """Resamplings of users for AUC."""
    seed: int = 0
    """Of both draws."""


class WarmStartOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `measure_warm_starts` is told."""

    steps: tuple[int, ...] = (64, 8)
    """New behaviors between reclusterings. A worker takes 64 at once, or what came within a second,
    which is fewer: so the second, which has most warm starts."""
    users: int = 200
    """Users of the test, at most: those with the longest sequences."""
    replicates: int = 200
    """Resamplings of users for AUC."""
    seed: int = 0
    """Of the resampling."""


def measure_staleness(
    runs: Mapping[str, Path], samples: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Measures of CTRs from interests that are n behaviors old.

    For each n, on the requests that have more than n earlier behaviors:

    - "fresh": nothing is stale; the last L behaviors are clustered.
    - "attended": interests are of the L behaviors before the last n, and those n are attended to as
      well, each an interest of its own (a service's remedy, `scorer.ranking`). Methods without
      interests see L + n behaviors.
    - "longer": nothing is stale, but L + n behaviors are seen, as many as by "attended". What
      differs between the two is staleness, and no longer how much is seen.
    - "recent": interests are as old and the n behaviors are none; but the M recent behaviors and
      all features are fresh.
    - "unseen": nothing of the last n behaviors is seen at all, by no part of the network.

    Args:
        runs: finished runs of any method, by label.
        samples: of the setup that they were trained on.
        options: `StalenessOptions`, by name.

    Returns:
        "most_newer": a service that is more behaviors late clusters on the spot, so beyond it
        "attended" is what it avoids. "runs": per label "fresh" of all requests, and "stale", per n:
        how many "requests" and "users", the median "age_h" (hours since the newest behavior in the
        interests), the mean number of "behaviors" seen, "measures" of each variant (AUC, GAUC), and
        "differences" between two (`models.metrics.Difference`); or, where too few requests have a
        past as long, a "note" that says so.
    """
    chosen = msgspec.convert(dict(options), StalenessOptions)
    requests = _drawn(samples.test, chosen.requests, chosen.seed)
    return {
        "most_newer": MAX_NEWER,
        "runs": {
            label: _plain(_staleness_of(path, samples, requests, chosen))
            for label, path in runs.items()
        },
    }


def _staleness_of(
    path: Path, samples: Split, requests: Requests, options: StalenessOptions
) -> dict[str, Any]:
    scorer = _Scorer.of(path, samples)
    fresh = scorer.fresh(requests)
    history = samples.history(requests)
    stale = []
    for n in sorted({*options.newer, *options.between}):
        rows = np.flatnonzero(history > n)
        if len(rows) < max(options.at_least, 1):
            note = (
                f"{len(rows)} of {len(history)} requests have more than {n} earlier behaviors; "
                f"{options.at_least} are needed"
            )
            stale.append({"n": n, "requests": len(rows), "note": note})
            continue
        stale.append(_stale(scorer, samples, requests.part(rows), n, fresh[rows], options))
    return {
        "L": scorer.gatherer.L,
        "fresh": _measures(fresh, requests, samples),
        "stale": stale,
    }


def _stale(
    scorer: _Scorer,
    samples: Split,
    requests: Requests,
    n: int,
    fresh: Floats,
    options: StalenessOptions,
) -> dict[str, Any]:
    ctrs: dict[str, Floats] = {
        "fresh": fresh,
        "longer": scorer.fresh(requests, n),
        "attended": scorer.attended(requests, n),
        "recent": scorer.recent(requests, n),
        "unseen": scorer.unseen(requests, n),
    }
    differences: dict[str, dict[str, Any]] = {}
    for variant, reference in COMPARED if n in options.newer else ():
        differences.setdefault(variant, {})[reference] = _differences(
            ctrs[variant], ctrs[reference], requests, samples, options.replicates, options.seed
        )
    history = samples.history(requests)
    covered_s = samples.sequences.times[requests.cut - n - 1]
    L = scorer.gatherer.L
    return {
        "n": n,
        "requests": len(history),
        "users": len(np.unique(samples.users(requests))),
        "age_h": float(np.median(scorer.times(requests) - covered_s)) / 3600,
        "behaviors": {
            "fresh": float(np.minimum(history, L).mean()),
            "attended": float(np.minimum(history, L + n).mean()),
        },
        "measures": {name: _measures(each, requests, samples) for name, each in ctrs.items()},
        "differences": differences,
    }


@dataclass(frozen=True)
class _Scorer:
    """A run's network, asked as services of different lateness would."""

    network: Network
    gatherer: Gatherer

    @classmethod
    def of(cls, path: Path, samples: Split) -> _Scorer:
        run = training.load_run(path)
        return cls(run.network, training.make_gatherer(run.config, samples, run.inputs))

    def times(self, requests: Requests) -> Ints:
        """i64[R], seconds since epoch: when each is made."""
        if requests.times is not None:
            return requests.times
        return self.gatherer.sequences.times[requests.cut]

    def fresh(self, requests: Requests, more: int = 0) -> Floats:
        """f32[R, B]: from the last L + ``more`` behaviors, all of them clustered."""
        gatherer = replace(self.gatherer, L=self.gatherer.L + more)
        return training.predict(self.network, gatherer, requests._replace(as_of=requests.cut))

    def attended(self, requests: Requests, n: int) -> Floats:
        """f32[R, B]: the last n behaviors stand beside the clusters of those before."""
        stale = requests._replace(as_of=requests.cut - n)
        return training.predict(self.network, self.gatherer, stale)

    def unseen(self, requests: Requests, n: int) -> Floats:
        """f32[R, B]: as if the last n behaviors had not been."""
        return training.predict(self.network, self.gatherer, self._before(requests, n))

    def recent(self, requests: Requests, n: int) -> Floats:
        """f32[R, B]: without the last n behaviors in the interests, with them in all else."""
        fresh = requests._replace(as_of=requests.cut)
        stale = self._before(requests, n)
        network = self.network
        scored = []
        with torch.no_grad():
            table = network.item_table()
            for rows in _parts(requests):
                then = self.gatherer(stale.part(rows))
                state = network.long.summarize(network.sequence(then, table))
                scored.append(_score(network, self.gatherer(fresh.part(rows)), state, table))
        return np.concatenate(scored)

    def stored(
        self, requests: Requests, states: Sequence[Sequence[InterestState]], newer: int
    ) -> list[Floats]:
        """f32[R, B] for each series of R stored states, behaviors newer than them attended to.

        Args:
            requests: ``as_of`` is the states'.
            newer: the most behaviors that any request has beyond its state.
        """
        network = self.network
        scored: list[list[Floats]] = [[] for _ in states]
        with torch.no_grad():
            table = network.item_table()
            for rows in _parts(requests):
                batch = self.gatherer(requests.part(rows))
                newest = network.sequence(batch, table).latest(newer)
                assert newest.newer is not None
                alone = newest.newer & newest.mask
                for series, part in zip(states, scored, strict=True):
                    interests = np.stack([state.interests for state in series[rows]])
                    sizes = np.stack([state.sizes.astype(np.float32) for state in series[rows]])
                    mask = torch.cat([torch.from_numpy(sizes), alone.to(table.dtype)], 1)
                    state: State = {
                        "interests": torch.cat([torch.from_numpy(interests), newest.embeddings], 1),
                        "interest_mask": mask,
                    }
                    part.append(_score(network, batch, state, table))
        return [np.concatenate(part) for part in scored]

    def _before(self, requests: Requests, n: int) -> Requests:
        """The same users asked for the same candidates at the same time, n behaviors short."""
        cut = requests.cut - n
        return requests._replace(cut=cut, as_of=cut, times=self.times(requests))


def _score(network: Network, batch: Batch, state: State, table: Tensor) -> Floats:
    """CTRs f32[R, B] from a stored state, all else from a batch."""
    recent = network.sequence(batch, table).latest(network.config.M)
    logits = network.logits(
        state,
        recent.embeddings,
        recent.mask.to(table.dtype),
        network.user(batch),
        network.target(batch, table),
        batch.cross,
    )
    ctrs: Floats = torch.sigmoid(logits).float().numpy()
    return ctrs


def _parts(requests: Requests) -> Iterator[slice]:
    size = max(1, training.EVALUATED // requests.candidates.shape[1])
    for begin in range(0, len(requests.cut), size):
        yield slice(begin, begin + size)


def measure_warm_starts(
    runs: Mapping[str, Path], samples: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Warm against cold clustering along streams of behaviors.

    The sequences of the test's users with the longest ones are streamed through
    `extractor.extract.Extractor`. Every so many behaviors the last L are clustered twice: warm,
    from the centers that were left by the warm clustering before, as a worker does it, and cold.
    Requests of the test are scored from the interests that a service would have then, the newer
    behaviors attended to.

    Args:
        runs: finished runs, by label; those that serve no k-means are skipped.
        samples: of the setup that they were trained on.
        options: `WarmStartOptions`, by name.

    Returns:
        "runs": per label K, L, "iterations" of warm and cold at most, and "streams", for each step
        how many "users" there are, and figures of all reclusterings that were started warm ("all"),
        of each user's last ("end"), and by number of warm starts in a row ("along"):

        - "warm_starts": the least and the most; how many "reclusterings";
        - "objective": mean cosine of behaviors and the nearest center, warm and cold;
        - "agreement": share of behaviors that both put into the same cluster (`agreement`);
        - "stays": the same of the behaviors that the clustering before has seen, with that
          clustering, warm and cold: how alike two of the same kind are;
        - "cpu_ms": mean time of an extraction, warm and cold: the one figure that is not the same
          every time;
        - "requests" that are scored from these interests, and their "auc", warm and cold.

        "all" and "end" also have "differences", warm over cold (`models.metrics.Difference`), and
        "ctr_difference", the mean absolute one.
    """
    chosen = msgspec.convert(dict(options), WarmStartOptions)
    return {
        "runs": {
            label: _plain(_warm_starts_of(path, samples, chosen)) for label, path in runs.items()
        }
    }


class _Scored(NamedTuple):
    """R requests scored from stored states."""

    requests: Requests
    warm_starts: Ints
    """i64[R]: behind the warm state."""
    at_end: Flags
    """bool[R]: the state is the user's last."""
    warm: Floats
    """f32[R, B]: CTRs."""
    cold: Floats
    """f32[R, B]."""

    def part(self, rows: Flags) -> _Scored:
        return _Scored(
            self.requests.part(np.flatnonzero(rows)),
            self.warm_starts[rows],
            self.at_end[rows],
            self.warm[rows],
            self.cold[rows],
        )


def _warm_starts_of(path: Path, samples: Split, options: WarmStartOptions) -> dict[str, Any]:
    scorer = _Scorer.of(path, samples)
    long = scorer.network.long
    if not isinstance(long, Encode) or long.config.clustering != "k-means":
        return {"note": "it does not cluster by k-means, so that nothing is started warm"}
    if scorer.network.feature_tables():
        return {"note": "it has features of behaviors, which a service does not cluster by"}
    items = Items.of(scorer.network, scorer.gatherer.L, samples.known)
    return {
        "K": long.config.K,
        "L": scorer.gatherer.L,
        "iterations": {"warm": min(WARM_ITERATIONS, long.config.T), "cold": long.config.T},
        "streams": [_stream_all(scorer, items, samples, step, options) for step in options.steps],
    }


def _stream_all(
    scorer: _Scorer, items: Items, samples: Split, step: int, options: WarmStartOptions
) -> dict[str, Any]:
    requests = _of_longest(samples, options.users, 2 * step)
    if not len(requests.cut):
        note = f"no request has {2 * step} earlier behaviors, so that nothing is started warm"
        return {"step": step, "users": 0, "note": note}
    start = samples.sequences.start[requests.cut]
    count = (requests.cut - start) // step * step
    stream = Stream(items)
    rows: list[tuple[Any, ...]] = []
    states: dict[tuple[int, int], States] = {}
    for user in np.unique(start).tolist():
        wanted = set(count[start == user].tolist())
        behaviors = behaviors_of(samples, user, user + max(wanted))
        for seen, both, found in stream.run(behaviors, step):
            rows.append((user, *found))
            if seen in wanted:
                states[user, seen] = both
    figures = np.array(rows, FIGURES)
    scored = _scored(scorer, requests._replace(as_of=start + count), start, states, step)
    ends = np.append(figures["user"][1:] != figures["user"][:-1], True)
    started_warm = figures[figures["warm_starts"] > 0]

    def compared(reclusterings: Figures, part: _Scored) -> dict[str, Any]:
        return _summary(reclusterings, part) | _compared(part, samples, options)

    return {
        "step": step,
        "users": len(np.unique(start)),
        "all": compared(started_warm, scored),
        "end": compared(figures[ends], scored.part(scored.at_end)),
        "along": list(_along(figures, scored)),
    }


def _scored(
    scorer: _Scorer,
    requests: Requests,
    start: Ints,
    states: Mapping[tuple[int, int], States],
    step: int,
) -> _Scored:
    """Requests scored from the states of a user (where their sequence starts) and count."""
    count = requests.as_of - start
    found = [states[key] for key in zip(start.tolist(), count.tolist(), strict=True)]
    series = [[both.warm for both in found], [both.cold for both in found]]
    last = dict(sorted(states))  # of (user, count): the greatest count of each
    return _Scored(
        requests,
        # The first clustering is cold.
        count // step - 1,
        count == [last[user] for user in start.tolist()],
        *scorer.stored(requests, series, step - 1),
    )


def _of_longest(samples: Split, users: int, least: int) -> Requests:
    """The test's requests of the users with most behaviors before one of them.

    Args:
        users: at most.
        least: behaviors before a request, at least.
    """
    requests, history = samples.test, samples.history(samples.test)
    start = samples.sequences.start[requests.cut]
    longest: dict[int, int] = {}
    for user, length in zip(start.tolist(), history.tolist(), strict=True):
        longest[user] = max(longest.get(user, 0), length)
    ranked = sorted(longest, key=lambda user: (-longest[user], user))[:users]
    return requests.part(np.flatnonzero(np.isin(start, ranked) & (history >= least)))


def _along(figures: Figures, scored: _Scored) -> Iterator[dict[str, Any]]:
    """Figures by number of warm starts in a row: 0, 1, 2 to 3, 4 to 7, and so on."""
    low, high = 0, 0
    number = figures["warm_starts"]
    while low <= number.max():
        after = (scored.warm_starts >= low) & (scored.warm_starts <= high)
        yield _summary(figures[(number >= low) & (number <= high)], scored.part(after))
        low, high = high + 1, 2 * high + 1


def _summary(figures: Figures, scored: _Scored) -> dict[str, Any]:
    requests = scored.requests
    return {
        "warm_starts": [int(figures["warm_starts"].min()), int(figures["warm_starts"].max())],
        "reclusterings": len(figures),
        "users": len(np.unique(figures["user"])),
        "objective": _both(_means(figures["objective"])),
        "agreement": float(_means(figures["agreement"])),
        "stays": _both(_means(figures["stays"])),
        "cpu_ms": _both(_means(figures["cpu_s"]) * 1000),
        "requests": len(requests.cut),
        "auc": _both(
            auc(ctrs, requests.labels, requests.weights) for ctrs in (scored.warm, scored.cold)
        ),
    }


def _compared(scored: _Scored, samples: Split, options: WarmStartOptions) -> dict[str, Any]:
    return {
        "differences": _differences(
            scored.warm, scored.cold, scored.requests, samples, options.replicates, options.seed
        ),
        "ctr_difference": float(np.abs(scored.warm - scored.cold).mean()),
    }


def _means(values: npt.NDArray[Any]) -> Doubles:
    """f64[...] of f64[N, ...]: means of what is a number; not a number where nothing is."""
    counted = ~np.isnan(values)
    number = counted.sum(0)
    total = np.where(counted, values, 0.0).sum(0)
    return np.where(number > 0, total / np.maximum(number, 1), math.nan)


def _both(values: Iterable[float]) -> dict[str, float]:
    warm, cold = values
    return {"warm": float(warm), "cold": float(cold)}


def _drawn(requests: Requests, size: int, seed: int) -> Requests:
    """So many of the requests, drawn at random and in their order."""
    if len(requests.cut) <= size:
        return requests
    rng = np.random.default_rng([seed, 40])
    return requests.part(np.sort(rng.choice(len(requests.cut), size, replace=False)))


def _measures(ctrs: Floats, requests: Requests, samples: Split) -> dict[str, float]:
    users = np.broadcast_to(samples.users(requests)[:, None], ctrs.shape)
    return {
        "auc": auc(ctrs, requests.labels, requests.weights),
        "gauc": gauc(ctrs, requests.labels, users, requests.weights),
    }


def _differences(
    first: Floats, second: Floats, requests: Requests, samples: Split, replicates: int, seed: int
) -> dict[str, Any]:
    """``first - second`` on AUC and GAUC."""
    users = samples.users(requests)
    resamplings: dict[Literal["auc", "gauc"], int] = {"auc": replicates, "gauc": RESAMPLED_GAUC}
    return {
        name: asdict(
            paired_bootstrap(
                first,
                second,
                requests.labels,
                users,
                name,
                replicates=number,
                seed=seed,
                weights=requests.weights,
            )
        )
        for name, number in resamplings.items()
    }


def _plain(value: Any) -> Any:
    """The value for JSON: None for what is not a number."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
