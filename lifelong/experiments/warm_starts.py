"""Whether hundreds of warm starts in a row drift away from clusterings made afresh (`streams`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from infra.arrays import F32, F64, I64, Array, Bools
from lifelong.evaluate.run import differences, plain
from lifelong.experiments.services import SimulatedService
from lifelong.experiments.streams import FIGURES, Figures, Items, States, Stream, behaviors_of
from models.data.requests import Requests
from models.data.splits import Split
from models.kernels.clustering import WARM_ITERATIONS
from models.measures.predictions import auc
from models.networks.encode import Encode


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
    """Seed of the resampling."""


def measure_warm_starts(
    runs: Mapping[str, Path], samples: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Warm against cold clustering along streams of behaviors.

    The sequences of the test's users with the longest ones are streamed through
    `extractor.systems.encode.Extractor`. Every so many behaviors the last L are clustered twice:
    warm, from the centers that were left by the warm clustering before, as a worker does it, and
    cold. Requests of the test are scored from the interests that a service would have then, the
    newer behaviors attended to.

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
        - "agreement": share of behaviors that both put into the same cluster (`streams.agreement`);
        - "stays": share of the behaviors seen by the clustering before that keep their cluster,
          warm and cold: how alike two clusterings of one kind are;
        - "cpu_ms": mean time of an extraction, warm and cold: the one figure that is not the same
          every time;
        - "requests" that are scored from these interests, and their "auc", warm and cold.

        "all" and "end" also have "differences", warm over cold
        (`models.measures.predictions.Difference`), and "ctr_difference", the mean absolute one
        of CTRs.
    """
    chosen = msgspec.convert(dict(options), WarmStartOptions)
    return {
        "runs": {
            label: plain(_warm_starts_of(path, samples, chosen)) for label, path in runs.items()
        }
    }


class _Scored(NamedTuple):
    """R requests scored from stored states."""

    requests: Requests
    warm_starts: I64
    """i64[R]: warm starts in a row behind the warm state."""
    at_end: Bools
    """bool[R]: the state is the user's last."""
    warm: F32
    """f32[R, B]: CTRs from the warm states."""
    cold: F32
    """f32[R, B]: CTRs from the cold states."""

    def part(self, rows: Bools) -> _Scored:
        return _Scored(
            self.requests.part(np.flatnonzero(rows)),
            self.warm_starts[rows],
            self.at_end[rows],
            self.warm[rows],
            self.cold[rows],
        )


def _warm_starts_of(path: Path, samples: Split, options: WarmStartOptions) -> dict[str, Any]:
    service = SimulatedService.of(path, samples)
    long = service.network.long
    if not isinstance(long, Encode) or long.config.clustering != "k-means":
        return {"note": "it does not cluster by k-means, so that nothing is started warm"}
    if service.network.feature_tables():
        return {"note": "it has features of behaviors, which a service does not cluster by"}
    items = Items.of(service.network, service.gatherer.L, samples.known)
    return {
        "K": long.config.K,
        "L": service.gatherer.L,
        "iterations": {"warm": min(WARM_ITERATIONS, long.config.T), "cold": long.config.T},
        "streams": [_stream_all(service, items, samples, step, options) for step in options.steps],
    }


def _stream_all(
    service: SimulatedService, items: Items, samples: Split, step: int, options: WarmStartOptions
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
    scored = _scored(service, requests._replace(as_of=start + count), start, states, step)
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
    service: SimulatedService,
    requests: Requests,
    start: I64,
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
        *service.stored(requests, series, step - 1),
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
        "differences": differences(
            scored.warm, scored.cold, scored.requests, samples, options.replicates, options.seed
        ),
        "ctr_difference": float(np.abs(scored.warm - scored.cold).mean()),
    }


def _means(values: Array) -> F64:
    """f64[...] of f64[N, ...]: means of what is a number; not a number where nothing is."""
    counted = ~np.isnan(values)
    number = counted.sum(0)
    total = np.where(counted, values, 0.0).sum(0)
    return np.where(number > 0, total / np.maximum(number, 1), math.nan)


def _both(values: Iterable[float]) -> dict[str, float]:
    warm, cold = values
    return {"warm": float(warm), "cold": float(cold)}
