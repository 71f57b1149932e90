"""The sequence record against a model of plain lists, and against damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import records
from infra.behaviors import BEHAVIOR, pack_behavior
from infra.errors import RecordDamaged, RecordTooLarge, StoreCorrupt
from infra.records import MAX_MARKS, RECENT_EVENTS, Changed, Counters, Coverage, DueKey
from infra.segments import SEGMENT
from infra.store import STATES, Append
from tests.infra.histories import (
    BUNDLES,
    OWNERS,
    SOURCES,
    TTL_MS,
    Forget,
    MarkDue,
    Merge,
    Model,
    Operation,
    PutInterests,
    Record,
    Send,
    Wait,
    histories,
    lengths,
    sends,
    spread,
)

USER = "ann"
BUNDLE_KEYS = [spread(2 * i + 1) for i in range(BUNDLES)]


class Written:
    """One user's record, written as stores write it, and the model beside it."""

    def __init__(self, length: int) -> None:
        owners = [2**64 - 1 - i for i in range(OWNERS)]
        self.model = Model(USER, [spread(i) for i in range(SOURCES)], owners)
        self.head: bytes | None = None
        self._ring: dict[int, bytes] = {}
        self._length = length

    def do(self, operation: Operation) -> None:
        """Do it to both, and compare."""
        match operation:
            case Send():
                self._append(operation)
            case PutInterests():
                self._put_interests(operation)
            case MarkDue():
                self._mark_due(operation)
            case Forget():
                self._forget()
            case Merge():
                self._merge(operation)
            case Wait():
                self.model.wait(operation)
                self._expire()
        self._compare()

    def newest(self, head: bytes, length: int) -> list[bytes]:
        decoded = records.decode_head(head, USER)
        ring = records.ring_size(self._length)
        segments = [self._ring[number % ring] for number in decoded.segments(length)]
        newest = decoded.newest(segments, length)
        assert (newest.lost, newest.damaged) == (0, {})
        return [behavior.tobytes() for behavior in newest.behaviors]

    def _append(self, send: Send) -> None:
        events = self.model.events(send)
        self._expire()
        source, owner = self.model.source_keys[send.source], self.model.owner_keys[send.owner]
        before = self._due()
        bundle = 0 if send.bundle is None else BUNDLE_KEYS[send.bundle]
        grown = records.grow(self.head, source, owner, events, self.model.now_ms, bundle)
        assert grown.appended == self.model.append(send, events)
        assert grown.undue == before - self._due()
        assert grown.due == self._due() - before
        if grown.head is not None:
            self._keep(grown.head, seal=send.sealed)

    def _merge(self, merge: Merge) -> None:
        history, claim = self.model.history(merge)
        self._expire()
        head = None if self.head is None else records.decode_head(self.head, USER)
        before = self._due()
        told = self.model.merge(merge, history, claim, self._length)
        if head and head.claim and head.claim.job == claim.job:
            return
        bundle = 0 if merge.bundle is None else BUNDLE_KEYS[merge.bundle]
        ring = records.ring_size(self._length)
        stored = records.NOTHING
        if self.head is not None:
            rows = b"".join(self.newest(self.head, self._length))
            stored = np.frombuffer(rows, BEHAVIOR)
        joined = records.merge(head, stored, history, claim, self.model.now_ms, ring, bundle)
        assert joined.merged == told
        assert joined.undue == before - self._due()
        assert joined.due == self._due() - before
        if joined.count:
            self.head, segments = joined.sealed()
            assert records.seal(joined.head(), ring) == (self.head, segments)
            self._ring = {number % ring: segment for number, segment in segments}

    def _due(self) -> set[DueKey]:
        record = self.model.record
        since = record.since if record else {}
        owner = record.owner if record else 0
        return {DueKey(BUNDLE_KEYS[bundle], owner, time) for bundle, time in since.items()}

    def _keep(self, head: bytes, *, seal: bool) -> None:
        segments: list[tuple[int, bytes]] = []
        if seal:
            head, segments = records.seal(head)
            assert records.tail_length(head) < SEGMENT
        before, self.head = self.head, head
        read = self.newest(before, self._length) if before else []
        for number, segment in segments:
            self._ring[number % records.ring_size(self._length)] = segment
        if before and records.tail_length(before) < SEGMENT and len(segments) == 1:
            # Whoever has read the head before this seal reads its segments after it.
            assert self.newest(before, self._length) == read

    def _put_interests(self, put: PutInterests) -> None:
        version = self.model.put_interests(put)
        self._expire()
        if self.head is None or version is None:
            return
        counters = records.read_counters(self.head, USER)
        bundle = BUNDLE_KEYS[put.bundle]
        if counters.coverage(bundle).covered <= version.count:
            now_ms = self.model.now_ms
            changed = records.cover(self.head, counters, bundle, version.count, now_ms)
            self._change(changed, counters)

    def _change(self, changed: Changed, counters: Counters) -> None:
        if changed.head is not None:
            self.head = changed.head
        assert changed.dropped == []
        assert (counters.due - changed.undue) | changed.due == self._due()

    def _mark_due(self, mark: MarkDue) -> None:
        marked = self.model.mark_due(mark)
        self._expire()
        if self.head is not None:
            counters = records.read_counters(self.head, USER)
            owner, bundle = self.model.owner_keys[mark.owner], BUNDLE_KEYS[mark.bundle]
            changed = records.set_due(self.head, counters, owner, bundle, self.model.now_ms)
            assert (changed.head is not None) == marked
            self._change(changed, counters)

    def _forget(self) -> None:
        self.model.forget()
        self._expire()
        self.head = records.delete(self.head, USER, self.model.now_ms)
        self._ring.clear()

    def _expire(self) -> None:
        if self.head and records.expired(self.head, USER, TTL_MS, self.model.now_ms):
            self.head = None
            self._ring.clear()

    def _compare(self) -> None:
        record = self.model.record
        if self.head is None or record is None:
            assert (self.head, record) == (None, None)
            return
        head = records.decode_head(self.head, USER)
        assert (head.version, head.updated) == (record.version, record.updated)
        assert head.marks == record.marks
        assert list(head.event_keys) == record.event_keys[-RECENT_EVENTS:]
        assert (head.deleted, head.claim) == (record.deleted, record.claim)
        assert records.is_deleted(self.head) == (not record.behaviors)
        self._compare_coverages(record, records.read_counters(self.head, USER))
        for length in {0, 1, min(len(head.tail) + 1, self._length), self._length}:
            assert self.newest(self.head, length) == record.newest(length)

    def _compare_coverages(self, record: Record, counters: Counters) -> None:
        covered = {c.bundle: c.covered for c in counters.coverages}
        assert covered == {BUNDLE_KEYS[b]: count for b, count in record.covered.items()}
        assert counters.due == self._due()
        for bundle, since in record.since.items():
            due = counters.due_user(USER, BUNDLE_KEYS[bundle])
            assert due == (USER, since, record.lacking(bundle))


@settings(max_examples=300, deadline=None)
@given(lengths, histories)
def test_a_record_is_what_its_history_says(length: int, history: list[Operation]) -> None:
    written = Written(length)
    for operation in history:
        written.do(operation)


@settings(max_examples=100, deadline=None)
@given(sends, st.integers(1, 3 * SEGMENT))
def test_a_sequence_does_not_depend_on_how_its_events_are_cut(send: Send, size: int) -> None:
    events = Model(USER, [1] * SOURCES, [1] * OWNERS).events(send)
    whole = records.grow(None, 1, 1, events, 1).head
    cut: bytes | None = None
    for start in range(0, send.number, size):
        part = slice(start, start + size)
        some = Append(USER, events.behaviors[part], events.event_keys[part], events.offsets[part])
        cut = records.grow(cut, 1, 1, some, 1).head or cut
    assert cut == whole


def events(number: int, *, first_offset: int = 0, first_key: int = 0) -> Append:
    """So many events with keys that count up from ``first_key``; 0: without keys."""
    ids = range(number)
    return Append(
        USER,
        [pack_behavior(i, i, 0, 0, 1) for i in ids],
        [first_key + i if first_key else 0 for i in ids],
        [first_offset + i for i in ids],
    )


@pytest.mark.parametrize(("between", "duplicates"), [(RECENT_EVENTS - 1, 1), (RECENT_EVENTS, 0)])
def test_an_event_is_recognised_among_the_newest_32_keys(between: int, duplicates: int) -> None:
    head = records.grow(None, 1, 1, events(1 + between, first_key=7), 1).head
    again = records.grow(head, 1, 1, events(1, first_offset=1000, first_key=7), 2)
    assert again.duplicates == duplicates


def test_a_record_remembers_255_sources_and_refuses_more_by_name() -> None:
    head = None
    for source in range(MAX_MARKS):
        head = records.grow(head, spread(source), 1, events(1), 1).head
    assert head is not None
    with pytest.raises(RecordTooLarge, match=USER):
        records.grow(head, spread(MAX_MARKS), 1, events(1), 2)
    assert records.grow(head, spread(MAX_MARKS - 1), 1, events(2), 2).applied == 1
    assert records.decode_head(head, USER).marks == {spread(i): 0 for i in range(MAX_MARKS)}


def test_the_first_mark_of_a_log_that_went_on_takes_the_place_of_its_earlier_lives() -> None:
    head = None
    for source in range(MAX_MARKS):
        head = records.grow(head, spread(source), 1, events(1), 1).head

    grown = records.grow(head, spread(MAX_MARKS), 1, events(1), 2, dead=(spread(0), spread(9)))

    assert grown.head is not None
    left = {spread(i): 0 for i in range(MAX_MARKS + 1) if i not in {0, 9}}
    assert records.decode_head(grown.head, USER).marks == left


READS: dict[str, Callable[[bytes], object]] = {
    "grow": lambda head: records.grow(head, 1, 1, events(1, first_offset=9999, first_key=1), 2),
    "decode_head": lambda head: records.decode_head(head, USER),
    "read_counters": lambda head: records.read_counters(head, USER),
    "delete": lambda head: records.delete(head, USER, 2),
}
"""All that a store does to a head before anything else."""


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head that a history has left, whatever its tail."""
    written = Written(SEGMENT)
    for send in draw(st.lists(sends, min_size=1, max_size=4)):
        written.do(send)
    assert written.head is not None
    return written.head


@pytest.mark.parametrize("read", READS)
@settings(max_examples=50, deadline=None)
@given(heads(), st.data())
def test_a_head_cut_short_is_damaged_and_names_the_user(
    read: str, head: bytes, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(head) - 1) | st.integers(len(head) - 30, len(head) - 1))
    with pytest.raises(RecordDamaged, match=USER):
        READS[read](head[:size])


@pytest.mark.parametrize("read", READS)
@settings(max_examples=20, deadline=None)
@given(heads(), st.binary(min_size=1, max_size=40))
def test_a_head_with_bytes_behind_it_is_damaged(read: str, head: bytes, more: bytes) -> None:
    with pytest.raises(RecordDamaged):
        READS[read](head + more)


@pytest.mark.parametrize("read", READS)
@given(st.integers(3, 255))
def test_a_head_of_a_later_format_is_refused_with_both_formats(read: str, form: int) -> None:
    head = records.grow(None, 1, 1, events(3), 1).head
    assert head is not None
    body = bytes([form]) + head[1:-8]
    later = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    with pytest.raises(StoreCorrupt, match=f"format {form}, this version reads up to 2") as caught:
        READS[read](later)
    assert not isinstance(caught.value, RecordDamaged)


@pytest.mark.parametrize("read", READS)
@settings(max_examples=50, deadline=None)
@given(heads(), st.data(), st.integers(1, 255))
def test_a_byte_gone_wrong_is_damage(
    read: str, head: bytes, data: st.DataObject, change: int
) -> None:
    place = data.draw(st.integers(1, len(head) - 1) | st.integers(1, 56))
    damaged = head[:place] + bytes([head[place] ^ change]) + head[place + 1 :]
    with pytest.raises(RecordDamaged):
        READS[read](damaged)
    assert not records.is_deleted(damaged)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_head(foreign: bytes) -> None:
    with pytest.raises(RecordDamaged):
        records.decode_head(b"\0" + foreign, USER)


# Which bundles a head remembers


def coverages(head: bytes) -> list[Coverage]:
    return records.read_counters(head, USER).coverages


def full_head() -> bytes:
    head = records.grow(None, 1, 1, events(SEGMENT), 1).head
    assert head is not None
    return head


def covered(head: bytes, bundle: int, *, states: int = STATES) -> Changed:
    counters = records.read_counters(head, USER)
    return records.cover(head, counters, bundle, SEGMENT, 9, states=states)


def test_the_bundle_last_written_stands_last() -> None:
    head = full_head()
    for bundle in (1, 2, 1):
        head = covered(head, bundle).head or head
    assert [c.bundle for c in coverages(head)] == [2, 1]


def test_one_bundle_too_many_drops_the_one_longest_not_written() -> None:
    head = full_head()
    for bundle in (1, 2):
        head = covered(head, bundle, states=2).head or head
    changed = covered(head, 3, states=2)
    assert changed.dropped == [1]
    assert changed.head is not None
    assert [c.bundle for c in coverages(changed.head)] == [2, 3]


def test_fewer_states_than_before_drop_all_that_are_too_many() -> None:
    head = full_head()
    for bundle in range(1, 6):
        head = covered(head, bundle, states=5).head or head
    changed = covered(head, 6, states=2)
    assert changed.dropped == [1, 2, 3, 4]


def test_a_bundle_that_waits_for_its_state_drops_none_that_has_one() -> None:
    head = full_head()
    for bundle in range(1, STATES + 1):
        head = covered(head, bundle).head or head
    for new in range(10, 20):
        more = events(1, first_offset=1000 + new)
        head = records.grow(head, 1, 1, more, 2, bundle=new).head or head
    assert [c.bundle for c in coverages(head)] == [*range(1, STATES + 1), 19]
    assert covered(head, 19).dropped == [1]


def test_a_user_without_a_full_segment_is_due_for_nobody() -> None:
    head = records.grow(None, 1, 1, events(SEGMENT - 1), 1, bundle=5).head
    assert head is not None
    assert coverages(head) == []


@given(heads())
def test_whose_head_may_not_lack_a_state_has_no_full_segment(head: bytes) -> None:
    assert records.may_lack(head) == (records.read_counters(head, USER).count >= SEGMENT)


def test_a_head_of_another_format_may_lack_a_state() -> None:
    assert records.may_lack(b"\x01" + bytes(60))


def test_a_light_user_s_head_is_small() -> None:
    head = records.grow(None, 1, 1, events(10, first_key=1), 1, bundle=5).head
    assert head is not None
    assert len(head) <= 450
