from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.errors import SettingsError
from lifelong.experiments import extra_tables, report
from lifelong.experiments.cells import Record
from lifelong.experiments.setups import Setup
from lifelong.experiments.tables import TABLES, Row
from tests.infra.disks import full_disk


def record(setup: Setup, auc: float) -> Record:
    measures = {"auc": auc, "gauc": auc - 0.1, "log_loss": 0.5}
    samples = {"users": 40, "items": 9, "training": 800, "validation": 60, "test": 60}
    return Record(
        kind="quality",
        label="ENCODE",
        seed=0,
        configs={"": {"long_term": {"L": 30}, "network": {"M": 4}}},
        options={},
        revision="abc",
        machine="a machine",
        seconds=30.0,
        result={
            "samples": samples,
            "epochs": 2,
            "curve": [{"validation": {"auc": 0.5}}, {"validation": {"auc": auc}}],
            "one_epoch": measures,
            "converged": measures,
        },
    )


def difference(low: float, high: float) -> dict[str, Any]:
    one = {"observed": (low + high) / 2, "low": low, "high": high, "p": 0.1}
    return {"auc": one, "gauc": one}


@pytest.fixture
def found(tiny: Setup) -> dict[str, Any]:
    rows = [
        report.RowResult(Row("DIN-L", "DIN-L"), 0.003, [record(tiny, 0.8)] * 2, ["a", "b"], None),
        report.RowResult(
            Row("ENCODE", "ENCODE"),
            0.006,
            [record(tiny, 0.7), record(tiny, 0.8)],
            ["c", "d"],
            difference(-0.08, -0.02),
        ),
        report.RowResult(
            Row("SDIM", "SDIM"), 0.006, [record(tiny, 0.81)], ["e"], difference(-0.01, 0.03)
        ),
    ]
    return report.compose(
        "encode-table-2",
        TABLES["encode-table-2"],
        tiny,
        seeds=2,
        trained=[each for row in rows for each in row.records],
        rows=rows,
        extras={},
        left_out=["TWIN w/o Bias"],
    )


def lines(found: dict[str, Any]) -> dict[str, list[str]]:
    rows = [line for line in report.markdown(found).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row for row in cells}


def test_a_row_is_the_mean_and_its_spread_over_seeds(found: dict[str, Any]) -> None:
    assert lines(found)["ENCODE"][1] == "0.7500 ± 0.0707"


def test_a_difference_that_leaves_out_zero_is_bold(found: dict[str, Any]) -> None:
    assert lines(found)["ENCODE"][3] == "**-0.0500 (-0.0800 to -0.0200)**"
    assert lines(found)["SDIM"][3] == "+0.0100 (-0.0100 to +0.0300)"
    assert lines(found)["DIN-L"][3] == extra_tables.NONE


def test_it_says_on_what_and_how_many(found: dict[str, Any]) -> None:
    text = report.markdown(found)
    for part in (
        "40 users",
        "800 requests to learn from",
        "seeds: 2",
        "L = 30",
        "a machine",
        "abc",
    ):
        assert part in text


def test_what_is_left_out_is_said(found: dict[str, Any]) -> None:
    assert "TWIN w/o Bias" in report.markdown(found)


def test_a_terminal_of_80_columns_shows_every_figure(found: dict[str, Any]) -> None:
    stream = io.StringIO()
    report.show(Console(file=stream, width=80), found | {"files": ["out/encode-table-2.md"]})
    text = " ".join(stream.getvalue().split())
    assert "ENCODE 0.7500 ± 0.0707 -0.0500 (-0.0800 to -0.0200)" in text
    assert "TWIN w/o Bias" in text
    assert text.endswith("out/encode-table-2.md")


def test_both_files_are_written(found: dict[str, Any], tmp_path: Path) -> None:
    files = report.write(found, tmp_path)
    assert sorted(Path(file).name for file in files) == [
        "encode-table-2.json",
        "encode-table-2.md",
    ]


def test_a_place_that_cannot_be_written_is_told(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        report.write(found, tmp_path / "file")


def test_without_room_the_files_before_stay(found: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = {path: Path(path).read_bytes() for path in report.write(found, out)}
    with pytest.raises(SettingsError, match="cannot be written") as raised, full_disk():
        report.write(found | {"title": "Another"}, out)
    assert "\n" not in str(raised.value)
    assert {str(path): path.read_bytes() for path in out.iterdir()} == before
