"""The scorer's main module: small enough for a supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_what_ranks_is_not_imported_before_a_process_needs_it() -> None:
    code = (
        "import sys, scorer.server\n"
        "print(*sorted({'numba', 'onnxruntime', 'starlette', 'uvicorn'} & sys.modules.keys()))"
    )
    imported = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )

    assert imported.stdout.split() == []
