from __future__ import annotations

import pytest

from infra.errors import SettingsError
from lifelong.experiments.runner import OF_RUNS, TIMINGS
from lifelong.experiments.setups import Setup
from lifelong.experiments.tables import METHODS, TABLES, choose_rows, find_tables


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_configuration(name: str, tiny: Setup) -> None:
    table = TABLES[name]
    for row in (*table.rows, *(row for extra in table.extras for row in extra.rows)):
        assert row.method in METHODS
        tiny.config(tiny.method_tree(row.long_term))


@pytest.mark.parametrize("name", TABLES)
def test_labels_of_a_table_differ(name: str) -> None:
    labels = [row.label for row in TABLES[name].rows]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", TABLES)
def test_everything_beside_quality_can_be_measured(name: str) -> None:
    for extra in TABLES[name].extras:
        assert extra.kind in (TIMINGS if extra.timed else OF_RUNS)


@pytest.mark.parametrize("name", TABLES)
def test_differences_are_to_a_row_or_to_a_method(name: str) -> None:
    row = TABLES[name].reference_row
    assert row.label == TABLES[name].reference
    assert row in TABLES[name].rows or row.method == row.label


def test_all_are_all() -> None:
    assert find_tables("all") == TABLES


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"did you mean encode-table-2\?"):
        find_tables("encode-table2")


def test_chosen_methods_leave_their_rows() -> None:
    table = choose_rows(TABLES, ["sdim", "TWIN w/o Bias"])["encode-table-2"]
    assert [row.label for row in table.rows] == ["SDIM", "SDIM, with rates"]
    assert "TWIN" in table.not_chosen


def test_a_row_is_chosen_by_its_label() -> None:
    found = choose_rows(find_tables("twin-figure-6"), ["TWIN w/o Bias"])
    assert [row.label for row in found["twin-figure-6"].rows] == ["TWIN w/o Bias"]


def test_tables_without_a_chosen_row_fall_out() -> None:
    assert "staleness" not in choose_rows(TABLES, ["sdim"])


def test_what_is_measured_beside_is_measured_of_chosen_rows() -> None:
    (extra,) = choose_rows(find_tables("encode-table-2"), ["sdim"])["encode-table-2"].extras
    assert [row.label for row in extra.rows] == ["SDIM"]


def test_a_method_that_no_row_is_of_is_told() -> None:
    with pytest.raises(SettingsError, match="--method SDM: no row is of it; did you mean SDIM"):
        choose_rows(TABLES, ["SDM"])


def test_no_choice_is_all() -> None:
    assert choose_rows(TABLES, []) == TABLES
