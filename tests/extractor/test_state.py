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

from extractor.state import FORMAT, InterestState, Layout
from infra.errors import StoreCorrupt
from infra.store import Version
from models.bundle import StateTensor
from models.features import History

TENSORS = {
    "interests": StateTensor("float32", ("k", 3)),
    "table": StateTensor("float16", (2, 5)),
    "codes": StateTensor("int64", ("k", "g")),
    "sizes": StateTensor("uint32", ("k",)),
}
LAYOUT = Layout(TENSORS)


@st.composite
def states(draw: st.DrawFn) -> InterestState:
    lengths = {axis: draw(st.integers(0, 6)) for axis in ("k", "g")}
    n, recent = draw(st.integers(0, 20)), draw(st.integers(0, 10))

    def tensor(spec: StateTensor) -> Any:
        shape = tuple(lengths[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        return draw(hnp.arrays(np.dtype(spec.dtype), shape))

    return InterestState(
        bundle=draw(st.binary(min_size=16, max_size=16)),
        version=Version(draw(st.integers(-(2**63), 2**63 - 1)), draw(st.integers(0, 2**64 - 1))),
        last_time_ms=draw(st.integers(-(2**63), 2**63 - 1)),
        recent=draw(hnp.arrays(np.uint64, recent)),
        history=History(
            np.sort(draw(hnp.arrays(np.uint64, n, unique=True))),
            draw(hnp.arrays(np.uint16, n)),
            draw(hnp.arrays(np.uint32, n)),
        ),
        tensors={name: tensor(spec) for name, spec in TENSORS.items()},
    )


@pytest.fixture(scope="module")
def state() -> InterestState:
    """A state with something of everything."""
    rng = np.random.default_rng(0)
    return InterestState(
        bundle=b"a small bundle's",
        version=Version(7, 60),
        last_time_ms=3,
        recent=np.arange(5, dtype=np.uint64),
        history=History(
            np.arange(7, dtype=np.uint64), np.ones(7, np.uint16), np.full(7, 9, np.uint32)
        ),
        tensors={
            "interests": rng.random((4, 3), np.float32),
            "table": rng.random((2, 5), np.float32).astype(np.float16),
            "codes": rng.integers(0, 9, (4, 2)),
            "sizes": np.ones(4, np.uint32),
        },
    )


@pytest.fixture(scope="module")
def record(state: InterestState) -> bytes:
    return LAYOUT.encode(state)


def arrays(state: InterestState) -> list[Any]:
    return [state.recent, *state.history, *state.tensors.values()]


@settings(max_examples=150, deadline=None)
@given(states())
def test_a_state_survives_its_record(state: InterestState) -> None:
    decoded = LAYOUT.decode(LAYOUT.encode(state))
    for name in ("bundle", "version", "last_time_ms"):
        assert getattr(decoded, name) == getattr(state, name)
    assert list(decoded.tensors) == list(state.tensors)
    for expected, found in zip(arrays(state), arrays(decoded), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_decoded_state_is_a_view_of_its_record(record: bytes) -> None:
    whole = np.frombuffer(record, np.uint8)
    for array in arrays(LAYOUT.decode(record)):
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable
        assert array.flags.aligned


def test_a_record_is_little_endian_as_documented() -> None:
    layout = Layout({"interests": StateTensor("float32", ("k", 1))})
    state = InterestState(
        bundle=bytes(range(16)),
        version=Version(1, 2),
        last_time_ms=3,
        recent=np.array([9], np.uint64),
        history=History(
            np.array([9], np.uint64), np.array([4], np.uint16), np.array([5], np.uint32)
        ),
        tensors={"interests": np.array([[2.0]], np.float32)},
    )
    covered = (
        bytes(range(16))
        + struct.pack("<qQqII", 1, 2, 3, 1, 1)
        + struct.pack("<I4xQQI4xH6xf", 1, 9, 9, 5, 4, 2.0)
    )
    assert (
        layout.encode(state)
        == b"LLIS" + struct.pack("<IQ", FORMAT, xxhash.xxh3_64_intdigest(covered)) + covered
    )


def test_an_axis_of_several_tensors_is_written_once() -> None:
    assert LAYOUT.axes == ("k", "g")


def test_any_altered_bit_is_noticed(record: bytes) -> None:
    altered = bytearray(record)
    for at in range(len(altered)):
        altered[at] ^= 1 << at % 8
        with pytest.raises(StoreCorrupt):
            LAYOUT.decode(bytes(altered))
        altered[at] ^= 1 << at % 8


def test_any_truncation_is_noticed(record: bytes) -> None:
    for size in range(0, len(record), 7):
        with pytest.raises(StoreCorrupt):
            LAYOUT.decode(record[:size])


def test_trailing_bytes_are_noticed(record: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="where its header announces"):
        LAYOUT.decode(record + b"\0")


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(record: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        LAYOUT.decode(record)


@settings(max_examples=100)
@given(st.binary(min_size=56, max_size=300))
def test_a_header_that_lies_about_sizes_is_refused(tail: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        LAYOUT.decode(b"LLIS" + struct.pack("<IQ", FORMAT, 0) + tail)


def test_a_later_format_is_refused_by_number(record: bytes) -> None:
    later = bytearray(record)
    struct.pack_into("<I", later, 4, FORMAT + 1)
    with pytest.raises(StoreCorrupt, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        LAYOUT.decode(bytes(later))


def test_the_error_is_one_line_and_names_the_user() -> None:
    with pytest.raises(StoreCorrupt) as caught:
        LAYOUT.decode(b"", user="al\nice")
    assert "\n" not in str(caught.value)
    assert "'al\\nice'" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": b"short"},
        {"history": History(np.zeros(2, np.uint64), np.zeros(1, np.uint16), np.zeros(2, "u4"))},
        {"tensors": {}},
        {"sizes": np.zeros(3, np.uint32)},
        {"interests": np.zeros((4, 8), np.float32)},
        {"interests": np.zeros(4, np.float32)},
    ],
)
def test_arrays_that_do_not_fit_are_not_written(
    state: InterestState, change: dict[str, Any]
) -> None:
    if change.keys() <= TENSORS.keys():
        change = {"tensors": {**state.tensors, **change}}
    with pytest.raises(ValueError, match=r"digest|differ|laid out"):
        LAYOUT.encode(replace(state, **change))
