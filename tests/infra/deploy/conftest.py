from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Promtool = Callable[..., None]


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Runs promtool in a directory, and shows what it says should it fail."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install --no-install-recommends prometheus")

    def run(directory: Path, *arguments: str) -> None:
        done = subprocess.run(
            ["promtool", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run
