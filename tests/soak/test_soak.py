"""The short form of `make soak`: a few faults in some seconds; and a long one, every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.soak.faults import faults_of
from tests.soak.places import PLACES
from tests.soak.run import run_seed


@pytest.mark.slow
def test_answers_are_right_while_a_process_is_killed_and_bundles_are_exchanged(
    tmp_path: Path,
) -> None:
    """Slow: processes are started, and loaded for a while."""
    run = run_seed(1, 6, tmp_path, ("process-killed", "bundle-exchanged", "store-replaced"))
    assert not run.wrong, json.dumps(run.row(), indent=1)
    assert run.checked.compared


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("store", PLACES)
def test_two_minutes_of_all_faults(tmp_path: Path, store: str) -> None:
    """Slow: two minutes."""
    run = run_seed(1, 120, tmp_path, store=store)
    assert not run.wrong, json.dumps(run.row(), indent=1)
    assert {one.fault for one in run.injected} == set(faults_of(store))
