"""The sequence record against a model of plain lists, and against damage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import records
from infra.behaviors import pack_behavior
from infra.errors import RecordTooLarge, StoreCorrupt
from infra.records import MAX_MARKS, RECENT_EVENTS
from infra.segments import SEGMENT
from infra.store import Append
from tests.infra.histories import (
    OWNERS,
    SOURCES,
    TTL_MS,
    MarkDue,
    Model,
    Operation,
    PutInterests,
    Send,
    Wait,
    histories,
    lengths,
    sends,
    spread,
)

USER = "ann"


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
            case Wait():
                self.model.wait(operation)
                self._expire()
        self._compare()

    def newest(self, head: bytes, length: int) -> list[bytes]:
        decoded = records.decode_head(head, USER)
        ring = records.ring_size(self._length)
        segments = [self._ring[number % ring] for number in decoded.segments(length)]
        return [behavior.tobytes() for behavior in decoded.newest(segments, length, USER)]

    def _append(self, send: Send) -> None:
        events = self.model.events(send)
        self._expire()
        source, owner = self.model.source_keys[send.source], self.model.owner_keys[send.owner]
        was_due = self._due()
        grown = records.grow(self.head, source, owner, events, self.model.now_ms)
        done = self.model.append(send, events)
        assert (grown.applied, grown.replayed, grown.duplicates) == done
        assert grown.was_due == was_due
        assert grown.is_due == self._due()
        if grown.head is not None:
            self._keep(grown.head, seal=send.sealed)

    def _due(self) -> tuple[int, int] | None:
        record = self.model.record
        return (record.owner, record.since) if record and record.since else None

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
        if counters.covered <= version.count:
            self.head = records.cover(self.head, counters, version.count, self.model.now_ms)

    def _mark_due(self, mark: MarkDue) -> None:
        self.model.mark_due(mark)
        self._expire()
        if self.head is not None:
            counters = records.read_counters(self.head, USER)
            owner = self.model.owner_keys[mark.owner]
            self.head = records.set_due(self.head, counters, owner, self.model.now_ms) or self.head

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
        assert (head.covered, head.since) == (record.covered, record.since)
        assert head.owner == record.owner or not head.since
        counters = records.read_counters(self.head, USER)
        waiting = records.sealed(len(record.behaviors)) - record.covered
        assert counters.waiting == max(0, waiting)
        for length in {0, 1, min(len(head.tail) + 1, self._length), self._length}:
            assert self.newest(self.head, length) == record.newest(length)


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


READS: dict[str, Callable[[bytes], object]] = {
    "grow": lambda head: records.grow(head, 1, 1, events(1, first_offset=9999, first_key=1), 2),
    "decode_head": lambda head: records.decode_head(head, USER),
    "read_counters": lambda head: records.read_counters(head, USER),
    "expired": lambda head: records.expired(head, USER, TTL_MS, 0),
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
def test_a_head_cut_short_is_corrupt_and_names_the_user(
    read: str, head: bytes, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(head) - 1) | st.integers(len(head) - 30, len(head) - 1))
    with pytest.raises(StoreCorrupt, match=USER):
        READS[read](head[:size])


@pytest.mark.parametrize("read", READS)
@settings(max_examples=20, deadline=None)
@given(heads(), st.binary(min_size=1, max_size=40))
def test_a_head_with_bytes_behind_it_is_corrupt(read: str, head: bytes, more: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        READS[read](head + more)


@pytest.mark.parametrize("read", READS)
@given(st.integers(0, 255).filter(lambda form: form != 1))
def test_a_head_of_another_format_is_refused_with_both_formats(read: str, form: int) -> None:
    head = records.grow(None, 1, 1, events(3), 1).head
    assert head is not None
    with pytest.raises(StoreCorrupt, match=f"format {form}, this version reads format 1"):
        READS[read](bytes([form]) + head[1:])


@pytest.mark.parametrize("read", READS)
@settings(max_examples=50, deadline=None)
@given(heads(), st.data(), st.integers(1, 255))
def test_a_byte_gone_wrong_is_read_or_corrupt_and_nothing_else(
    read: str, head: bytes, data: st.DataObject, change: int
) -> None:
    place = data.draw(st.integers(0, len(head) - 1) | st.integers(0, 56))
    damaged = head[:place] + bytes([head[place] ^ change]) + head[place + 1 :]
    with contextlib.suppress(StoreCorrupt):
        READS[read](damaged)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_head(foreign: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        records.decode_head(b"\0" + foreign, USER)
