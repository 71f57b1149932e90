from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import DataError
from lifelong.experiments.cells import QUALITY, Cell, CellStore
from lifelong.experiments.setups import Setup, Tree
from tests.infra.disks import full_disk


@pytest.fixture
def store(tiny: Setup, tmp_path: Path) -> CellStore:
    return CellStore(tiny, tmp_path / "out")


def of(setup: Setup, **method: object) -> Tree:
    tree = setup.method_tree({"network": "encode", **method})
    return tree | {"seed": 0}


def quality(tree: Tree, label: str = "ENCODE") -> Cell:
    return Cell(kind=QUALITY, label=label, seed=tree["seed"], trees={"": tree})


def key(store: CellStore, tree: Tree) -> str:
    return store.key(QUALITY, {"": tree}, {})


def test_a_finished_cell_is_found_again_under_another_label(tiny: Setup, store: CellStore) -> None:
    store.save(quality(of(tiny)), {"auc": 0.7}, 1.0)
    found = store.load(quality(of(tiny), "k-means"))
    assert found is not None
    assert found.result == {"auc": 0.7}


def test_a_cell_says_how_it_came_about(tiny: Setup, store: CellStore) -> None:
    record = store.save(quality(of(tiny)), {}, 1.26)
    assert record.configs[""]["long_term"]["T"] == 15  # a default, written down
    assert (record.seconds, record.seed) == (1.3, 0)
    assert record.revision
    assert "cores" in record.machine


def test_where_the_data_are_makes_no_other_cell(tiny: Setup, store: CellStore) -> None:
    moved = of(tiny) | {"name": "another", "data": {"reader": "shipped", "path": "elsewhere"}}
    assert key(store, moved) == key(store, of(tiny))


def test_a_default_that_is_said_makes_no_other_cell(tiny: Setup, store: CellStore) -> None:
    assert key(store, of(tiny, K=30)) == key(store, of(tiny))


def test_what_decides_the_outcome_makes_another_cell(tiny: Setup, store: CellStore) -> None:
    trained = of(tiny) | {"training": {"batch": 256}}
    other = [of(tiny, K=5), of(tiny) | {"seed": 1}, of(tiny, loss="none"), trained]
    assert len({key(store, tree) for tree in [of(tiny), *other]}) == 5


def test_what_decides_nothing_makes_no_other_cell(tiny: Setup, store: CellStore) -> None:
    logged = of(tiny)
    logged["training"] |= {"log": ["tensorboard"], "checkpoint_s": 5.0}
    assert key(store, logged) == key(store, of(tiny))


def test_a_damaged_cell_is_told_with_what_to_do(tiny: Setup, store: CellStore) -> None:
    cell = quality(of(tiny))
    store.save(cell, {}, 1.0)
    store.path(cell).write_text("{")
    with pytest.raises(DataError, match="delete it"):
        store.load(cell)


def test_without_room_there_is_no_cell(tiny: Setup, store: CellStore) -> None:
    with pytest.raises(DataError, match="cannot be written") as raised, full_disk():
        store.save(quality(of(tiny)), {}, 1.0)
    assert "\n" not in str(raised.value)
    assert not list(store.cells.iterdir())
