"""States against the paper's steps one by one: plain loops over behaviors, the public kernels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from extractor.state import InterestState, Layout
from extractor.systems.encode import EncodeTensors, interests_of
from infra.arrays import F32
from infra.behaviors import BEHAVIOR
from infra.store import StoredSequence, Version
from models.bundle import StateTensor
from models.features import History
from models.kernels.attention import attend
from models.kernels.clustering import cluster
from tests.extractor.items import N_ITEMS, UNKNOWN, SmallDimensions, SmallTable, small_extractor

DIMENSIONS = SmallDimensions(K=4, L=60, M=7)
TABLE = SmallTable(DIMENSIONS)
EMBEDDINGS, PROJECTED = TABLE.embeddings, TABLE.projected
EXTRACTOR = small_extractor(K=4, L=60, M=7)
LAYOUT = Layout(
    {
        "centers": StateTensor("float32", ("k", 4)),
        "interests": StateTensor("float32", ("k", 8)),
        "sizes": StateTensor("uint32", ("k",)),
    }
)


def plain_state(sequence: StoredSequence, previous: InterestState | None) -> InterestState:
    behaviors = sequence.behaviors[-DIMENSIONS.L :]
    keys, times = behaviors["item"].tolist(), behaviors["time"].tolist()
    points: Counter[int] = Counter()
    for key in keys:
        points[key if key <= N_ITEMS else 0] += 1
    rows, counts = np.array([*points], np.int32), np.array([*points.values()], np.uint32)
    h = PROJECTED[rows]
    assign, centers, sizes, _ = cluster(
        h, DIMENSIONS.K, DIMENSIONS.T, counts, plain_start(sequence, previous)
    )
    interests = attend(h, assign, centers, rows, EMBEDDINGS, DIMENSIONS.scale, counts)
    items = sorted(set(keys))
    latest = {key: max(t for k, t in zip(keys, times, strict=True) if k == key) for key in items}
    history = History(
        np.array(items, np.uint64),
        np.array([min(keys.count(key), 2**16 - 1) for key in items], np.uint16),
        np.array([min(max(latest[key] // 1000, 0), 2**32 - 1) for key in items], np.uint32),
    )
    there = sizes > 0
    return InterestState(
        bundle=TABLE.digest,
        version=sequence.version,
        last_time_ms=max(times, default=0) if max(times, default=0) > 0 else 0,
        recent=np.array(keys[-DIMENSIONS.M :], np.uint64),
        history=history,
        tensors=EncodeTensors(centers[there], interests[there], sizes[there])._asdict(),
    )


def plain_start(sequence: StoredSequence, previous: InterestState | None) -> F32 | None:
    if previous is None or previous.bundle != TABLE.digest:
        return None
    newer = sequence.version.count - previous.count
    if previous.epoch != sequence.version.epoch or 2 * newer > len(sequence.behaviors):
        return None
    return interests_of(previous).centers


items = (
    st.integers(1, 5)  # often repeated
    | st.integers(1, N_ITEMS)
    | st.integers(UNKNOWN, UNKNOWN + 3)
    | st.integers(UNKNOWN, 2**64 - 1)
)
times = st.integers(0, 2**33) | st.integers(-(2**62), 2**62)
users = st.lists(st.tuples(items, times), max_size=150)


def sequence_of(events: list[tuple[int, int]], count: int, epoch: int = 7) -> StoredSequence:
    behaviors = np.zeros(len(events), BEHAVIOR)
    for i, event in enumerate(events):
        behaviors["item"][i], behaviors["time"][i] = event
    return StoredSequence(Version(epoch, count), behaviors, {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(users, st.integers(0, 150), st.sampled_from([7, 7, 8])), max_size=20))
def test_states_are_those_of_the_steps_one_by_one(
    drawn: list[tuple[list[tuple[int, int]], int, int]],
) -> None:
    sequences = [sequence_of(events, 1000) for events, _, _ in drawn]
    previous: list[InterestState | None] = []
    for number, (events, newer, epoch) in enumerate(drawn):
        old = plain_state(sequence_of(events[: len(events) - newer], 1000 - newer, epoch), None)
        if number % 7 == 6:
            old = replace(old, bundle=b"another bundle's")
        decoded = LAYOUT.decode(LAYOUT.encode(old))
        previous.append([None, old, decoded][number % 3])
    states = list(EXTRACTOR.extract_many(sequences, previous))
    assert len(states) == len(drawn)
    for sequence, before, state in zip(sequences, previous, states, strict=True):
        expected = LAYOUT.encode(plain_state(sequence, before))
        assert LAYOUT.encode(state) == expected
        assert LAYOUT.encode(EXTRACTOR.extract(sequence, before)) == expected
