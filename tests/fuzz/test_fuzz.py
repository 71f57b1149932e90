"""The short form of `make fuzz`: some connections of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.run import run_seed


@pytest.mark.slow
def test_hostile_clients_leave_a_scorer_as_it_was(tmp_path: Path) -> None:
    """Slow: a process is started, and attacked for a while."""
    run = run_seed(1, 400, tmp_path, warm=200, holds=False)
    assert not run.wrong, json.dumps(run.row(), indent=1)
    assert run.good
