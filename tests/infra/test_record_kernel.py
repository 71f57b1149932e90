"""The kernel that grows many heads at once, against `grow`, which says what an append does."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from infra import records
from infra.behaviors import Source, pack_behavior
from infra.record_kernel import grow_each
from infra.records import RECENT_EVENTS
from infra.segments import SEGMENT
from infra.store import Append, Claim, History
from tests.infra.histories import spread

NOW_MS = 1_000
SOURCES = [Source(spread(place), 2**64 - 1 - place) for place in range(3)]
BUNDLE, OTHER = 2**64 - 1, 2**63
"""Keys with their highest bit, which a signed number would lose."""


def append(source: int = 0, first: int = 0, number: int = 1, first_key: int = 0) -> Append:
    """Events of a user; with a first key, each has one of its own."""
    events = range(number)
    return Append(
        "ann",
        [pack_behavior(2**64 - 1 - first - i, first + i, 7, 8, source) for i in events],
        [spread(first_key + i) if first_key else 0 for i in events],
        [first + i for i in events],
    )


def grown(head: bytes | None, new: Append, source: int = 0, now_ms: int = NOW_MS) -> bytes:
    """What the kernel makes of a head; empty: it is not sure."""
    old = records.new_head(now_ms) if head is None else head
    (new_head,) = grow_each([old], [new], [source], SOURCES, now_ms, BUNDLE)
    return new_head


def grow(
    head: bytes | None, new: Append, source: int = 0, now_ms: int = NOW_MS, bundle: int = BUNDLE
) -> bytes:
    """What `infra.records.grow` makes of it."""
    of = SOURCES[source]
    head = records.grow(head, of.key, of.owner, new, now_ms, bundle).head
    assert head is not None
    return head


appends = st.builds(
    append,
    first=st.integers(0, 40),
    number=st.integers(1, 3) | st.integers(1, SEGMENT),
    first_key=st.sampled_from([0, 0, 1, 30, 60]) | st.integers(0, 90),
)
sends = st.tuples(st.integers(0, len(SOURCES) - 1), appends, st.sampled_from([0, BUNDLE, OTHER]))


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads as stores leave them: grown, sealed, covered, deleted, as of some time ago."""
    head = records.new_head(draw(st.sampled_from([0, 100])))
    for source, new, bundle in draw(st.lists(sends, max_size=5)):
        of = SOURCES[source]
        shifted = Append(new.user, new.behaviors, new.event_keys, [7 * o for o in new.offsets])
        head = records.grow(head, of.key, of.owner, shifted, 200, bundle).head or head
        match draw(st.integers(0, 9)):
            case 0:
                head = records.delete(head, "ann", 250)
            case 1:
                counters = records.read_counters(head, "ann")
                head = records.cover(head, counters, bundle or 1, counters.count, 300).head or head
            case 2:
                pass
            case 3:
                head, _ = records.seal(head)
                claim = Claim(1, draw(st.integers(0, 60)))
                history = History("ann", of.owner, pack_behavior(1, 0, 0, 0, 1))
                whole = records.decode_head(head, "ann")
                joined = records.merge(whole, whole.tail, history, claim, 260, 17, bundle)
                head = joined.head() if joined.count else head
            case _:
                head, _ = records.seal(head)
    return head


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(heads(), sends), max_size=4),
    st.sampled_from([0, BUNDLE, OTHER]),
    st.sampled_from([0, 700, 800, 801, 10**6]),
)
def test_what_the_kernel_is_sure_of_is_what_grow_says(
    users: Sequence[tuple[bytes, tuple[int, Append, int]]], bundle: int, ttl_ms: int
) -> None:
    olds = [head for head, _ in users]
    news = [new for _, (_, new, _) in users]
    places = [source for _, (source, _, _) in users]

    found = grow_each(olds, news, places, SOURCES, NOW_MS, bundle, ttl_ms)

    for old, new, source, head in zip(olds, news, places, found, strict=True):
        if head:
            of = SOURCES[source]
            said = records.grow(old, of.key, of.owner, new, NOW_MS, bundle)
            assert head == said.head
            assert (said.applied, said.undue, said.due) == (len(new.offsets), set(), set())
            assert not records.expired(old, "ann", ttl_ms, NOW_MS)
            assert not records.holds_segment(head)


def test_the_first_event_of_a_user_makes_a_head() -> None:
    assert grown(None, append()) == grow(None, append())


def test_a_behavior_goes_to_the_end_of_the_tail() -> None:
    head = grow(None, append(first_key=1))
    new = append(first=1, first_key=2)
    assert grown(head, new) == grow(head, new)


def test_the_oldest_event_keys_go() -> None:
    head = grow(None, append(number=RECENT_EVENTS - 1, first_key=1))
    new = append(first=100, number=3, first_key=100)
    assert grown(head, new) == grow(head, new)


def test_of_many_new_event_keys_the_newest_stay() -> None:
    head = grow(None, append(first_key=1))
    new = append(first=1, number=RECENT_EVENTS + 9, first_key=2)
    assert grown(head, new) == grow(head, new)


def test_a_sealed_user_goes_on_where_the_bundle_knows_them() -> None:
    head, _ = records.seal(grow(None, append(number=SEGMENT, first_key=1)))
    new = append(first=SEGMENT, number=SEGMENT - 1, first_key=1 + SEGMENT)
    assert grown(head, new) == grow(head, new)


def test_whoever_fills_a_segment_is_left() -> None:
    assert grown(None, append(number=SEGMENT)) == b""


def test_whoever_becomes_due_is_left() -> None:
    head, _ = records.seal(grow(None, append(number=SEGMENT), bundle=OTHER))
    assert grown(head, append(first=SEGMENT)) == b""


def test_whoever_is_due_elsewhere_is_left() -> None:
    head, _ = records.seal(grow(None, append(number=SEGMENT)))
    head = grow(head, append(), source=1)
    assert grown(head, append(first=SEGMENT), source=0) == b""


def test_an_offset_that_was_reached_is_left() -> None:
    assert grown(grow(None, append()), append()) == b""


def test_an_event_key_that_is_known_is_left() -> None:
    head = grow(None, append(first_key=1))
    assert grown(head, append(first=1, first_key=1)) == b""


def test_an_event_key_that_comes_twice_is_left() -> None:
    twice = append(number=2, first_key=1)
    twice.event_keys[1] = twice.event_keys[0]
    assert grown(None, twice) == b""


def test_the_first_event_of_another_source_is_left() -> None:
    assert grown(grow(None, append()), append(), source=1) == b""


def test_a_deleted_user_is_left() -> None:
    assert grown(records.delete(None, "ann", 5), append()) == b""


def test_an_expired_user_is_left() -> None:
    head = grow(None, append(), now_ms=100)
    new = append(first=1)
    assert grow_each([head], [new], [0], SOURCES, 201, ttl_ms=101) != [b""]
    assert grow_each([head], [new], [0], SOURCES, 201, ttl_ms=100) == [b""]


@given(st.data())
def test_a_damaged_head_is_left(data: st.DataObject) -> None:
    head = grow(None, append(number=12, first_key=1))
    at = data.draw(st.integers(0, len(head) - 1))
    wrong = bytes([head[at] ^ data.draw(st.integers(1, 255))])
    for damaged in (head[:at], head[:at] + wrong + head[at + 1 :], head + b"\0"):
        assert grown(damaged, append(first=12)) == b""
