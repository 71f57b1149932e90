from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infra.behaviors import BEHAVIOR
from infra.segments import LOST, SEGMENT, decode_each, decode_segments, encode_segment
from infra.store import Behaviors

EPOCH_MS = 1_700_000_000_000


@st.composite
def rows(draw: st.DrawFn) -> Behaviors:
    """64 behaviors, of which some columns say nothing."""
    behaviors = np.zeros(SEGMENT, BEHAVIOR)
    for name in ("item", "category", "dwell", "action"):
        if draw(st.booleans()):
            behaviors[name] = draw(hnp.arrays(BEHAVIOR[name], SEGMENT))
    span = draw(st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**62]))
    times = draw(hnp.arrays(np.int64, SEGMENT, elements=st.integers(0, span)))
    behaviors["time"] = times + draw(st.sampled_from([0, EPOCH_MS, -EPOCH_MS]))
    return behaviors


def purchases() -> Behaviors:
    """What most segments are: no category, no dwell, one action."""
    behaviors = np.zeros(SEGMENT, BEHAVIOR)
    behaviors["item"] = np.random.default_rng(0).integers(0, 2**63, SEGMENT)
    behaviors["time"] = EPOCH_MS + 60_000 * np.arange(SEGMENT)
    behaviors["action"] = 4
    return behaviors


@settings(max_examples=200, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=6), st.integers(0, 63))
def test_behaviors_come_back_as_they_were(parts: list[Behaviors], plain: int) -> None:
    segments = [
        part.tobytes() if plain >> i & 1 else encode_segment(part.tobytes())
        for i, part in enumerate(parts)
    ]
    decoded = decode_segments(segments)
    np.testing.assert_array_equal(decoded.behaviors, np.concatenate(parts))
    assert (decoded.lost, decoded.damaged) == ([], {})


def test_columns_that_say_nothing_are_left_out() -> None:
    assert len(encode_segment(purchases().tobytes())) == 16 + SEGMENT * (8 + 4)


def test_a_purchase_takes_half_of_what_it_takes_in_a_head() -> None:
    assert len(encode_segment(purchases().tobytes())) < SEGMENT * BEHAVIOR.itemsize / 2


def test_no_segments_are_no_behaviors() -> None:
    assert len(decode_segments([]).behaviors) == 0


def test_any_altered_bit_is_noticed() -> None:
    segment = bytearray(encode_segment(purchases().tobytes()))
    for at in range(len(segment)):
        segment[at] ^= 1 << at % 8
        assert list(decode_segments([bytes(segment)]).damaged) == [0]
        segment[at] ^= 1 << at % 8


@given(st.integers(0, 4 * SEGMENT * 25).filter(lambda size: size != SEGMENT * BEHAVIOR.itemsize))
def test_a_segment_of_another_size_is_lost(size: int) -> None:
    decoded = decode_segments([bytes(size)])
    assert (len(decoded.behaviors), decoded.lost) == (0, [0])
    assert (0 in decoded.damaged) == (bytes(size) != LOST)


def test_what_is_lost_in_between_leaves_the_others() -> None:
    whole = purchases()
    later = whole.copy()
    later["time"] += 1
    segments = [
        encode_segment(whole.tobytes()),
        None,
        b"rubbish",
        LOST,
        later.tobytes(),
    ]
    decoded = decode_segments(segments)
    np.testing.assert_array_equal(decoded.behaviors, np.concatenate((whole, later)))
    assert decoded.lost == [1, 2, 3]
    assert decoded.damaged == {1: "is missing", 2: "has 7 bytes"}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(rows() | st.sampled_from([None, b"rubbish", LOST]), max_size=5),
        max_size=4,
    )
)
def test_users_read_together_get_what_they_get_alone(
    users: list[list[Behaviors | bytes | None]],
) -> None:
    segments = [
        [encode_segment(part.tobytes()) if isinstance(part, np.ndarray) else part for part in parts]
        for parts in users
    ]
    together = decode_each(segments)
    assert len(together) == len(users)
    for found, alone in zip(together, map(decode_segments, segments), strict=True):
        np.testing.assert_array_equal(found.behaviors, alone.behaviors)
        assert (found.lost, found.damaged) == (alone.lost, alone.damaged)


def test_the_layout_is_as_documented() -> None:
    segment = encode_segment(purchases().tobytes())
    assert segment[4:8] == bytes([0, 4, 0, 0])
    assert int.from_bytes(segment[8:16], "little") == EPOCH_MS
    assert segment[16:24] == purchases()["item"][0].tobytes()
