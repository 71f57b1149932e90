"""``lifelong compile``: the kernels of worker and scorer, compiled before either starts.

A first start compiles them, some half a minute of processor time a process. Whoever builds an image
runs this in it; whoever cannot write beside the package sets NUMBA_CACHE_DIR.
"""

from __future__ import annotations

import time
from typing import Any

from extractor.systems import load_system
from infra.compiling import UNKEPT
from infra.errors import LifelongError
from infra.metrics import ScorerMetrics, new_registry
from infra.settings import BundleSettings, Settings
from infra.stores.memory import MemoryStore
from lifelong.shipped import BUNDLES
from scorer.ranking import Ranker
from streaming.events import avro_program
from streaming.worker import warm


def compile_kernels() -> dict[str, Any]:
    """Run each kernel of the services once, with each of the shipped bundles.

    Returns:
        ``systems``, by name, and how many ``seconds`` it took.

    Raises:
        LifelongError: what was compiled cannot be kept.
    """
    began = time.monotonic()
    for path in BUNDLES.values():
        settings = Settings(bundle=BundleSettings(path=path))
        bundle, system = load_system(settings)
        warm(settings, system)
        Ranker(MemoryStore(), bundle, system, ScorerMetrics(new_registry()))  # which warms itself
    avro_program.warm()
    if UNKEPT:
        raise LifelongError(
            f"{len(UNKEPT)} kernels cannot be kept: neither the package's folder nor a cache at"
            " home can be written; set NUMBA_CACHE_DIR to a folder that can, here and for services"
        )
    return {"systems": sorted(BUNDLES), "seconds": round(time.monotonic() - began, 1)}
