"""A generated store is as if its users had been written event by event."""

from __future__ import annotations

from pathlib import Path

from infra.segments import SEGMENT
from infra.stores.lmdb import LmdbStore
from lifelong.bench.users import DUE, OWNER, generate, go_over
from lifelong.shipped import BUNDLE
from models.bundle import Bundle


def test_generated_users_are_listed_read_and_due(tmp_path: Path) -> None:
    due = generate(tmp_path, 120)

    store = LmdbStore(tmp_path)
    names = store.users(b"", 1000).users
    listed = store.due(OWNER, Bundle.load(BUNDLE, verify=False).digest, 1000)
    sequences = dict(zip(names, store.sequences(names), strict=True))
    store.close()

    assert len(names) == 120 + 4
    assert len(listed) == due == 4
    assert {one.waiting for one in listed} == {SEGMENT}
    lengths = {name: len(one.behaviors) for name, one in sequences.items() if one is not None}
    assert {lengths[one.user] for one in listed} == {DUE}
    assert {lengths[name] for name in names if name not in {one.user for one in listed}} == {
        1,
        2,
        3,
    }


def test_a_walk_takes_steps_while_there_are_more() -> None:
    left = iter([True, True, False, True])

    assert go_over(lambda: next(left)).seconds > 0
    assert list(left) == [True]
