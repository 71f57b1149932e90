"""What freshness is worth: what a service loses that reclusters late.

It is also measured how much of that a service gets back by attending to the newer behaviors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from extractor.systems.encode import NEWEST
from infra.arrays import F32
from lifelong.evaluate.run import differences, plain
from lifelong.experiments.services import SimulatedService
from models.data.requests import Requests
from models.data.splits import Split
from models.measures.predictions import auc, gauc

Variant = Literal["longer", "attended", "recent", "unseen"]

COMPARED: Final[tuple[tuple[Variant, str], ...]] = (
    ("attended", "fresh"),
    ("attended", "longer"),
    ("attended", "recent"),
    ("recent", "fresh"),
    ("unseen", "fresh"),
)
"""Pairs of a variant and what its difference is taken to, told with an interval."""


class StalenessOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `measure_staleness` is told."""

    newer: tuple[int, ...] = (10, 100, 1000)
    """Ages of interests: n, the behaviors newer than they are."""
    between: tuple[int, ...] = (1, 3, 30, 300)
    """Further ages, for a curve: without the differences, which are what takes time."""
    at_least: int = 50
    """Requests that must have more than n earlier behaviors."""
    requests: int = 3000
    """Requests of the test, at most (drawn at random)."""
    replicates: int = 200
    """Resamplings of users for AUC."""
    seed: int = 0
    """Seed of the draw of requests and of the resampling."""


def measure_staleness(
    runs: Mapping[str, Path], samples: Split, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Measures of CTRs from interests that are n behaviors old.

    For each n, on the requests that have more than n earlier behaviors:

    - "fresh": nothing is stale; the last L behaviors are clustered.
    - "attended": interests are of the L behaviors before the last n, and those n are attended to as
      well, each an interest of its own (a service's remedy, `extractor.systems.encode`). Methods
      without interests see L + n behaviors.
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
        "differences" between two (`models.measures.predictions.Difference`); or, where too few
        requests have a past as long, a "note" that says so.
    """
    chosen = msgspec.convert(dict(options), StalenessOptions)
    requests = _drawn(samples.test, chosen.requests, chosen.seed)
    return {
        "most_newer": NEWEST,
        "runs": {
            label: plain(_staleness_of(path, samples, requests, chosen))
            for label, path in runs.items()
        },
    }


def _staleness_of(
    path: Path, samples: Split, requests: Requests, options: StalenessOptions
) -> dict[str, Any]:
    service = SimulatedService.of(path, samples)
    fresh = service.fresh(requests)
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
        stale.append(_stale(service, samples, requests.part(rows), n, fresh[rows], options))
    return {
        "L": service.gatherer.L,
        "fresh": _measures(fresh, requests, samples),
        "stale": stale,
    }


def _stale(
    service: SimulatedService,
    samples: Split,
    requests: Requests,
    n: int,
    fresh: F32,
    options: StalenessOptions,
) -> dict[str, Any]:
    ctrs: dict[str, F32] = {
        "fresh": fresh,
        "longer": service.fresh(requests, n),
        "attended": service.attended(requests, n),
        "recent": service.recent(requests, n),
        "unseen": service.unseen(requests, n),
    }
    compared: dict[str, dict[str, Any]] = {}
    for variant, reference in COMPARED if n in options.newer else ():
        compared.setdefault(variant, {})[reference] = differences(
            ctrs[variant], ctrs[reference], requests, samples, options.replicates, options.seed
        )
    history = samples.history(requests)
    covered_s = samples.sequences.times[requests.cut - n - 1]
    L = service.gatherer.L
    return {
        "n": n,
        "requests": len(history),
        "users": len(np.unique(samples.users(requests))),
        "age_h": float(np.median(service.times(requests) - covered_s)) / 3600,
        "behaviors": {
            "fresh": float(np.minimum(history, L).mean()),
            "attended": float(np.minimum(history, L + n).mean()),
        },
        "measures": {name: _measures(each, requests, samples) for name, each in ctrs.items()},
        "differences": compared,
    }


def _drawn(requests: Requests, size: int, seed: int) -> Requests:
    """So many of the requests, drawn at random and in their order."""
    if len(requests.cut) <= size:
        return requests
    rng = np.random.default_rng([seed, 40])
    return requests.part(np.sort(rng.choice(len(requests.cut), size, replace=False)))


def _measures(ctrs: F32, requests: Requests, samples: Split) -> dict[str, float]:
    users = np.broadcast_to(samples.users(requests)[:, None], ctrs.shape)
    return {
        "auc": auc(ctrs, requests.labels, requests.weights),
        "gauc": gauc(ctrs, requests.labels, users, requests.weights),
    }
