from __future__ import annotations

import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from infra.errors import LifelongError
from lifelong.experiments.runner import Options, _start, list_experiments, run_experiment
from lifelong.experiments.setups import Setup
from lifelong.experiments.tables import TABLES

NAME = "encode-figure-m"


def run(file: Path, out: Path, warm: ForkServerContext) -> dict[str, Any]:
    options = Options(str(file), seeds=1, out=out, processes=1)
    written = run_experiment(NAME, options, quiet=True, context=warm)
    found: dict[str, Any] = written["tables"][NAME]
    return found


def cells(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("tiny/cells/*.json")}


@pytest.fixture(scope="module")
def table(
    warm: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    from tests.lifelong.experiments.conftest import TINY

    directory = tmp_path_factory.mktemp("experiment")
    file = directory / "tiny.toml"
    file.write_text(TINY)
    return file, run(file, directory / "out", warm)


def test_every_row_is_measured_and_compared(table: tuple[Path, dict[str, Any]]) -> None:
    _, found = table
    assert [row["label"] for row in found["rows"]] == [row.label for row in TABLES[NAME].rows]
    for row in found["rows"]:
        assert 0 < row["converged"]["auc"][0] < 1
        if row["label"] == TABLES[NAME].reference:
            assert row["difference"] is None
        else:
            assert row["difference"]["auc"]["low"] <= row["difference"]["auc"]["high"]


def test_the_rate_is_the_one_that_validates_best(table: tuple[Path, dict[str, Any]]) -> None:
    file, found = table
    tried = {}
    for path in (file.parent / "out" / "tiny" / "cells").glob("quality-encode-0-*.json"):
        record = json.loads(path.read_text())
        rate = record["configs"][""]["training"]["learning_rate"]
        tried[rate] = max(epoch["validation"]["auc"] for epoch in record["result"]["curve"])
    assert len(tried) == 2
    assert found["rows"][0]["learning_rate"] == max(tried, key=lambda rate: tried[rate])


def test_tables_and_cells_are_written(table: tuple[Path, dict[str, Any]]) -> None:
    file, found = table
    assert all(Path(written).exists() for written in found["files"])
    # A method with two rates, three more widths, and their differences.
    assert len(cells(file.parent / "out")) == 2 + 3 + 3


def test_only_what_is_missing_is_measured(
    table: tuple[Path, dict[str, Any]], warm: ForkServerContext
) -> None:
    file, found = table
    before = cells(file.parent / "out")
    gone = next(name for name in before if name.startswith("quality-m-8"))
    (file.parent / "out" / "tiny" / "cells" / gone).unlink()
    again = run(file, file.parent / "out", warm)
    after = cells(file.parent / "out")
    assert {name for name in after if after[name] != before[name]} == {gone}
    for key in ("converged", "difference", "curves"):
        assert [row[key] for row in again["rows"]] == [row[key] for row in found["rows"]]


def test_what_a_cell_cannot_do_is_told(
    tiny_file: Path, tmp_path: Path, warm: ForkServerContext
) -> None:
    tiny_file.write_text(tiny_file.read_text().replace("users = 40", "users = 1"))
    with pytest.raises(LifelongError) as raised:
        run(tiny_file, tmp_path, warm)
    assert "\n" not in str(raised.value)


def command(setup: Setup, worker: Connection) -> None:
    """A command with a process in its pool, which it tells and then waits for."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _start, (setup, Path())) as pool:
        worker.send(pool.submit(os.getpid).result())
        pool.submit(time.sleep, 60).result()


def runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_process_ends_with_the_command_that_started_it(
    tiny: Setup, warm: ForkServerContext
) -> None:
    told, telling = warm.Pipe(duplex=False)
    with told:
        parent = warm.Process(target=command, args=(tiny, telling))
        parent.start()
        telling.close()
        worker = told.recv()
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(worker)


def test_the_list_names_every_table() -> None:
    assert list_experiments(quiet=True).keys() == TABLES.keys()
