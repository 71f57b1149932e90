"""``lifelong compile``: the kernels of worker and scorer, compiled before either starts.

A first start compiles them, some half a minute of processor time a process. Whoever builds an image
runs this in it; whoever cannot write beside the package sets NUMBA_CACHE_DIR.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from extractor.system import Candidates
from extractor.systems import load_system
from infra import record_kernel
from infra.compiling import UNKEPT
from infra.errors import LifelongError
from infra.settings import BundleSettings, Settings
from lifelong.shipped import BUNDLES
from streaming.events.decoder import EventDecoder


def compile_kernels() -> dict[str, Any]:
    """Run each kernel of the services once, with each of the shipped bundles.

    Returns:
        ``systems``, by name, and how many ``seconds`` it took.

    Raises:
        LifelongError: what was compiled cannot be kept.
    """
    began = time.monotonic()
    for path in BUNDLES.values():
        bundle, system = load_system(Settings(bundle=BundleSettings(path=path)))
        system.warm()
        keys = np.arange(3, dtype=np.uint64)
        system.feed(None, Candidates(keys, bundle.rows(keys)), 1)
    EventDecoder(Settings().events).warm()
    record_kernel.warm()
    if UNKEPT:
        raise LifelongError(
            f"{len(UNKEPT)} kernels cannot be kept: neither the package's folder nor a cache at"
            " home can be written; set NUMBA_CACHE_DIR to a folder that can, here and for services"
        )
    return {"systems": sorted(BUNDLES), "seconds": round(time.monotonic() - began, 1)}
