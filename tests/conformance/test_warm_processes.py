"""What the warm processes are to have imported; their server passes over what is missing."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext

from tests.warm_processes import IMPORTED


def missing() -> list[str]:
    return [name for name in IMPORTED if name not in sys.modules]


def test_a_warm_process_has_imported_all(warm: ForkServerContext) -> None:
    with ProcessPoolExecutor(1, warm) as pool:
        assert pool.submit(missing).result() == []
