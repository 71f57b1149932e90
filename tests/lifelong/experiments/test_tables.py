from __future__ import annotations

import pytest

from infra.errors import SettingsError
from lifelong.experiments.runner import OF_RUNS, TIMINGS
from lifelong.experiments.setups import Setup
from lifelong.experiments.tables import METHODS, TABLES, find_tables


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
