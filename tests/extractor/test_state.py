from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from extractor.state import FORMAT, InterestState
from infra.errors import StoreCorrupt
from infra.store import Version
from models.features import History
from tests.extractor.items import (
    START_MS,
    behaviors_on,
    random_sequence,
    sequence_of,
    small_extractor,
)

ARRAYS = ("centers", "sizes", "interests", "recent", "item_keys", "item_counts", "item_last")


@st.composite
def states(draw: st.DrawFn) -> InterestState:
    K, m, d = (draw(st.integers(low, 8)) for low in (0, 1, 1))
    n, recent = draw(st.integers(0, 20)), draw(st.integers(0, 10))
    floats: dict[str, Any] = {"elements": st.floats(width=32)}
    return InterestState(
        bundle=draw(st.binary(min_size=16, max_size=16)),
        epoch=draw(st.integers(-(2**63), 2**63 - 1)),
        count=draw(st.integers(0, 2**64 - 1)),
        centers=draw(hnp.arrays(np.float32, (K, m), **floats)),
        sizes=draw(hnp.arrays(np.uint32, K)),
        interests=draw(hnp.arrays(np.float32, (K, d), **floats)),
        recent=draw(hnp.arrays(np.uint64, recent)),
        item_keys=np.sort(draw(hnp.arrays(np.uint64, n, unique=True))),
        item_counts=draw(hnp.arrays(np.uint16, n)),
        item_last=draw(hnp.arrays(np.uint32, n)),
        last_time_ms=draw(st.integers(-(2**63), 2**63 - 1)),
        recent_length=draw(st.integers(recent, 2**16 - 1)),
    )


@pytest.fixture(scope="module")
def state() -> InterestState:
    return small_extractor().extract(random_sequence(60, seed=1))


# --- the record ---


@settings(max_examples=150, deadline=None)
@given(states())
def test_a_state_survives_its_record(state: InterestState) -> None:
    decoded = InterestState.decode(state.encode())
    for name in ("bundle", "epoch", "count", "last_time_ms", "recent_length"):
        assert getattr(decoded, name) == getattr(state, name)
    for name in ARRAYS:
        expected, found = getattr(state, name), getattr(decoded, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_decoded_state_is_a_view_of_its_record(state: InterestState) -> None:
    record = state.encode()
    decoded = InterestState.decode(record)
    whole = np.frombuffer(record, np.uint8)
    for name in ARRAYS:
        assert np.shares_memory(getattr(decoded, name), whole)
        assert not getattr(decoded, name).flags.writeable
        assert getattr(decoded, name).flags.aligned


def test_a_record_is_little_endian_as_documented() -> None:
    state = InterestState(
        bundle=bytes(range(16)),
        epoch=1,
        count=2,
        centers=np.array([[1.0]], np.float32),
        sizes=np.array([7], np.uint32),
        interests=np.array([[2.0]], np.float32),
        recent=np.array([9], np.uint64),
        item_keys=np.array([9], np.uint64),
        item_counts=np.array([4], np.uint16),
        item_last=np.array([5], np.uint32),
        last_time_ms=3,
        recent_length=50,
    )
    covered = (
        bytes(range(16))
        + struct.pack("<qQqHHHHIHH", 1, 2, 3, 1, 1, 1, 1, 1, 50, 0)
        + struct.pack("<QQffIIH", 9, 9, 1.0, 2.0, 7, 5, 4)
    )
    assert (
        state.encode()
        == b"LLIS" + struct.pack("<IQ", FORMAT, xxhash.xxh3_64_intdigest(covered)) + covered
    )


def test_any_altered_bit_is_noticed(state: InterestState) -> None:
    record = bytearray(state.encode())
    for at in range(len(record)):
        record[at] ^= 1 << at % 8
        with pytest.raises(StoreCorrupt):
            InterestState.decode(bytes(record))
        record[at] ^= 1 << at % 8


def test_any_truncation_is_noticed(state: InterestState) -> None:
    record = state.encode()
    for size in range(0, len(record), 7):
        with pytest.raises(StoreCorrupt):
            InterestState.decode(record[:size])


def test_trailing_bytes_are_noticed(state: InterestState) -> None:
    with pytest.raises(StoreCorrupt, match="where its header announces"):
        InterestState.decode(state.encode() + b"\0")


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(record: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        InterestState.decode(record)


@settings(max_examples=100)
@given(st.binary(min_size=56, max_size=300))
def test_a_header_that_lies_about_sizes_is_refused(tail: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        InterestState.decode(b"LLIS" + struct.pack("<IQ", FORMAT, 0) + tail)


def test_a_later_format_is_refused_by_number(state: InterestState) -> None:
    record = bytearray(state.encode())
    struct.pack_into("<I", record, 4, FORMAT + 1)
    with pytest.raises(StoreCorrupt, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        InterestState.decode(bytes(record))


def test_the_error_is_one_line_and_names_the_user() -> None:
    with pytest.raises(StoreCorrupt) as caught:
        InterestState.decode(b"", user="al\nice")
    assert "\n" not in str(caught.value)
    assert "'al\\nice'" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": b"short"},
        {"sizes": np.zeros(3, np.uint32)},
        {"interests": np.zeros((3, 8), np.float32)},
        {"centers": np.zeros(6, np.float32)},
        {"item_counts": np.zeros(1, np.uint16)},
        {"recent_length": 2},
    ],
)
def test_arrays_that_do_not_fit_are_not_written(
    state: InterestState, change: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"digest|differ|matrices|more than"):
        replace(state, **change).encode()


# --- what came after ---


def test_history_is_what_the_features_read(state: InterestState) -> None:
    assert isinstance(state.history, History)
    assert state.history.item_keys is state.item_keys
    assert int(state.history.counts.sum()) == 60


@settings(max_examples=60, deadline=None)
@given(
    old=st.lists(st.integers(1, 30), max_size=60),
    new=st.lists(st.integers(1, 40), max_size=60),
    decoded=st.booleans(),
)
def test_newer_behaviors_give_the_history_of_the_whole_sequence(
    old: list[int], new: list[int], decoded: bool
) -> None:
    extractor = small_extractor()
    whole = behaviors_on(old + new)
    state = extractor.extract(sequence_of(whole[: len(old)]))
    if decoded:
        state = InterestState.decode(state.encode())
    merged = state.with_newer(whole[len(old) :])
    complete = extractor.extract(sequence_of(whole))
    for name in ("recent", "item_keys", "item_counts", "item_last"):
        found, expected = getattr(merged, name), getattr(complete, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert merged.last_time_ms == complete.last_time_ms
    assert merged.version == Version(state.epoch, len(whole))


def test_newer_behaviors_leave_the_interests_alone(state: InterestState) -> None:
    merged = state.with_newer(behaviors_on([1, 2, 3]))
    assert merged.interests is state.interests
    assert merged.centers is state.centers
    assert merged.sizes is state.sizes


def test_nothing_newer_changes_nothing(state: InterestState) -> None:
    assert state.with_newer(behaviors_on([])) is state


def test_a_late_event_does_not_turn_the_clock_back(state: InterestState) -> None:
    merged = state.with_newer(behaviors_on(state.item_keys[:1], start_ms=START_MS - 10**9))
    assert merged.last_time_ms == state.last_time_ms
    assert merged.item_last[0] == state.item_last[0]
    assert merged.item_counts[0] == state.item_counts[0] + 1


def test_times_and_counts_stop_at_what_their_fields_can_hold(state: InterestState) -> None:
    full = replace(state, item_counts=np.full(len(state.item_counts), 65_535, np.uint16))
    key = int(state.item_keys[0])
    merged = full.with_newer(behaviors_on([key], start_ms=2**50))
    assert merged.item_counts[0] == 65_535
    assert merged.item_last[0] == 2**32 - 1
    before_1970 = behaviors_on([2**60], start_ms=-(10**9))
    assert full.with_newer(before_1970).item_last[-1] == 0
