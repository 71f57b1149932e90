"""Which segments users were read with."""

from __future__ import annotations

from infra.stores.aerospike.spans import Spans


def test_who_was_never_read_has_none() -> None:
    assert Spans().of("ann") == range(0)


def test_the_last_numbers_count() -> None:
    spans = Spans()
    spans.keep("ann", range(3))
    spans.keep("ann", range(1, 4))
    assert spans.of("ann") == range(1, 4)


def test_who_was_read_longest_ago_is_forgotten_first() -> None:
    spans = Spans(2)
    for user in ("ann", "bob", "ann", "zoe"):
        spans.keep(user, range(3))
    assert [len(spans.of(user)) for user in ("ann", "bob", "zoe")] == [3, 0, 3]


def test_who_has_no_segments_takes_no_room() -> None:
    spans = Spans(1)
    spans.keep("ann", range(3))
    spans.keep("bob", range(0))
    assert spans.of("ann") == range(3)
