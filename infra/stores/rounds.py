"""Appends in rounds, for stores that change each user once a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infra.store import Append, Group


def rounds(groups: Sequence[Group], most: int) -> Iterator[list[tuple[Group, Append]]]:
    """What groups append, in parts that hold no user twice and at most so many behaviors of one;
    those of a user in their order.
    """
    waiting = [(group, new) for group in groups for new in group.appends]
    while waiting:
        part: list[tuple[Group, Append]] = []
        later: list[tuple[Group, Append]] = []
        users: set[str] = set()
        for group, new in waiting:
            if new.user in users:
                later.append((group, new))
                continue
            users.add(new.user)
            stop = new.boundary(most)
            part.append((group, new.part(0, stop)))
            if len(new.offsets) > stop:
                later.append((group, new.part(stop, len(new.offsets))))
        yield part
        waiting = later
