from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import TrainingError
from models.data import (
    MAX_NEWER,
    Batch,
    BatchBuilder,
    Requests,
    SamplingConfig,
    Sequences,
    evaluation_requests,
    load_interactions,
    training_requests,
)
from models.features import CROSS_FEATURES, USER_FEATURES
from models.interactions import Interactions
from tests.models.generated import numbered, planted_interactions

EVERYTHING = SamplingConfig(behaviors_per_request=1, burn_in=0.0)


def small(L: int = 64, M: int = 8, K: int = 4) -> tuple[Interactions, Sequences, BatchBuilder]:
    interactions = planted_interactions(users=10, items=20, baskets=10)
    sequences = Sequences.of(interactions)
    return interactions, sequences, BatchBuilder(interactions, sequences, K=K, L=L, M=M, T=15)


def projected(interactions: Interactions) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.normal(size=(len(interactions.item_ids), 4)).astype(np.float32)


def one_request(cut: int, as_of: int, bundle: int, *candidates: int) -> Requests:
    shape = (1, len(candidates))
    return Requests(
        np.array([cut]),
        np.array([as_of]),
        np.array([bundle]),
        np.array([candidates], np.int32),
        np.zeros(shape, np.float32),
        np.ones(shape, np.float32),
    )


def write_events(path: Path, **columns: object) -> Path:
    table = {
        "user_id": ["b", "a", "b"],
        "item_id": ["x", "y", "x"],
        "time": pa.array([2000, 1000, 3000], pa.timestamp("ms", "UTC")),
        **columns,
    }
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return path


def test_parquet_is_read_in_order_of_time(tmp_path: Path) -> None:
    events = write_events(tmp_path / "events.parquet")
    titles = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ["x"], "description": ["An x"]}), titles)
    interactions = load_interactions(events, titles)
    assert interactions.user_ids == ["a", "b"]
    assert interactions.item_ids == ["", "y", "x"]
    assert interactions.titles == ["", "", "An x"]
    assert interactions.times.tolist() == [1, 2, 3]
    assert interactions.items.tolist() == [1, 2, 2]


def test_only_the_first_share_is_looked_at(tmp_path: Path) -> None:
    interactions = load_interactions(write_events(tmp_path / "events.parquet"), share=0.4)
    assert interactions.item_ids == ["", "y"]


@pytest.mark.parametrize(
    ("columns", "word"),
    [({"time": None}, "time"), ({"time": [1, 2, 3]}, "timestamp"), ({"user_id": None}, "user_id")],
)
def test_columns_that_do_not_do_are_named(
    tmp_path: Path, columns: dict[str, object], word: str
) -> None:
    path = write_events(tmp_path / "events.parquet", **columns)
    with pytest.raises(TrainingError, match=word) as caught:
        load_interactions(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_text("user,item")
    with pytest.raises(TrainingError, match="cannot be read as parquet"):
        load_interactions(path)
    with pytest.raises(TrainingError, match=r"nowhere\.parquet"):
        load_interactions(tmp_path / "nowhere.parquet")


def test_no_behavior_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no behavior"):
        load_interactions(write_events(tmp_path / "events.parquet"), share=0.0)


def test_the_head_knows_nothing_of_what_follows() -> None:
    interactions = planted_interactions(users=10, items=20, baskets=10)
    head = interactions.head(30)
    again = numbered(interactions.users[:30], interactions.items[:30], interactions.times[:30])
    assert len(head.item_ids) == len(again.item_ids)
    np.testing.assert_array_equal(head.items, again.items)


def test_popularity_counts_up_to_a_position() -> None:
    interactions = numbered([0, 1, 0, 1], [5, 6, 5, 5], [1, 2, 3, 4])
    row = np.array([1], np.int32)  # item 5 occurs first
    shares = [float(interactions.popularity(row, position)[0]) for position in range(5)]
    assert shares == pytest.approx([0, 1e6, 0.5e6, 2e6 / 3, 0.75e6])


def test_sequences_hold_users_and_baskets_apart() -> None:
    interactions = numbered([0, 1, 0, 0, 1], [1, 2, 3, 4, 5], [10, 10, 10, 20, 30])
    sequences = Sequences.of(interactions)
    assert sequences.position.tolist() == [0, 2, 3, 1, 4]
    assert sequences.start.tolist() == [0, 0, 0, 3, 3]
    assert sequences.basket.tolist() == [0, 0, 2, 3, 4]
    assert sequences.basket_end.tolist() == [2, 2, 3, 4, 5]


def test_positives_are_the_next_items_of_the_basket() -> None:
    interactions, sequences, _ = small()
    requests = training_requests(interactions, sequences, EVERYTHING, np.random.default_rng(0))
    assert sorted(requests.cut) == list(range(len(interactions)))
    for r, cut in enumerate(requests.cut):
        ahead = sequences.items[cut : min(cut + 4, sequences.basket_end[cut])]
        chosen = requests.candidates[r][(requests.labels[r] > 0) & (requests.weights[r] > 0)]
        assert chosen.tolist() == ahead.tolist()


def test_negatives_are_earlier_items_outside_the_basket() -> None:
    interactions, sequences, _ = small()
    requests = training_requests(interactions, sequences, EVERYTHING, np.random.default_rng(0))
    for r, cut in enumerate(requests.cut):
        negatives = requests.candidates[r][(requests.labels[r] == 0) & (requests.weights[r] > 0)]
        basket = sequences.items[sequences.basket[cut] : sequences.basket_end[cut]]
        earlier = interactions.items[: max(sequences.position[cut], 1)]
        assert not set(negatives) & set(basket)
        assert set(negatives) <= set(earlier)
        assert len(set(negatives)) == len(negatives)


def test_an_item_that_the_basket_holds_is_no_positive() -> None:
    interactions = numbered([0, 0, 0], [1, 2, 1], [10, 10, 10])
    sequences = Sequences.of(interactions)
    requests = training_requests(interactions, sequences, EVERYTHING, np.random.default_rng(0))
    row = requests.cut.tolist().index(2)
    assert not requests.weights[row, :4].any()


def test_staleness_stays_within_the_user_and_the_bound() -> None:
    interactions, sequences, _ = small()
    requests = training_requests(interactions, sequences, EVERYTHING, np.random.default_rng(0))
    newer = requests.cut - requests.as_of
    assert newer.min() >= 0
    assert newer.max() <= MAX_NEWER
    assert (requests.as_of >= sequences.start[requests.cut]).all()


def test_an_evaluation_request_is_one_item_among_distinct_others() -> None:
    interactions, sequences, _ = small()
    begin = 300
    requests = evaluation_requests(
        interactions, sequences, begin, 50, np.random.default_rng(0), negatives=9
    )
    assert len(requests.cut)
    assert (sequences.position[requests.cut] >= begin).all()
    for cut, candidates in zip(requests.cut, requests.candidates, strict=True):
        assert candidates[0] == sequences.items[cut]
        assert len(set(candidates)) == 10
        assert not set(candidates) & set(sequences.items[sequences.basket[cut] : cut])


def test_what_happens_later_changes_no_sample() -> None:
    """Later items are exchanged; users and the times' order stay, so requests are comparable."""
    before = planted_interactions(users=10, items=20, baskets=10)
    cut_off = 240
    items = before.items.copy()
    items[cut_off:] = np.random.default_rng(9).permutation(items[cut_off:]) % 20 + 1
    items[cut_off::3] = 21  # and there is a new item
    times = before.times.copy()
    times[cut_off:] += 1_000_000
    after = Interactions(
        before.user_ids,
        [*before.item_ids, "new"],
        [*before.titles, "New"],
        before.users,
        items,
        times,
    )
    made = []
    for interactions in (before, after):
        sequences = Sequences.of(interactions)
        requests = training_requests(interactions, sequences, EVERYTHING, np.random.default_rng(0))
        early = requests.part(np.flatnonzero(sequences.position[requests.cut] < cut_off))
        builder = BatchBuilder(interactions, sequences, K=4, L=64, M=8, T=15)
        made.append((early, builder.batch(early, projected(after), np.random.default_rng(1))))
    (early, batch), (early_again, batch_again) = made
    assert len(early.cut) == cut_off
    for mine, other in zip(early, early_again, strict=True):
        np.testing.assert_array_equal(mine, other)
    for field in fields(Batch):
        np.testing.assert_array_equal(getattr(batch, field.name), getattr(batch_again, field.name))


def test_a_batch_holds_the_clustered_and_the_newer_behaviors() -> None:
    interactions, sequences, builder = small(K=4)
    batch = builder.batch(
        one_request(38, 33, 10**6, 1, 2), projected(interactions), np.random.default_rng(0)
    )
    clustered = batch.member_counts[batch.member_cluster < 4]
    assert clustered.sum() == 33
    newer = batch.member_rows[batch.member_cluster >= 4]
    assert newer.tolist() == sequences.items[33:38].tolist()
    assert batch.interest_mask.sum() == 9
    assert batch.recent[0].tolist() == sequences.items[30:38].tolist()


def test_only_the_last_L_behaviors_count() -> None:  # noqa: N802 - L is the papers' letter
    interactions, sequences, builder = small(L=10)
    item = int(sequences.items[0])
    window = sequences.items[28:38]
    batch = builder.batch(
        one_request(38, 38, 10**6, item, int(window[0])),
        projected(interactions),
        np.random.default_rng(0),
    )
    assert batch.member_counts.sum() == 10
    count = CROSS_FEATURES.index("count")
    expected = np.log1p([(window == item).sum(), (window == window[0]).sum()]) / np.log(10_001)
    np.testing.assert_allclose(batch.cross[0, :, count], expected, rtol=1e-5)


def test_a_bundle_does_not_know_items_that_came_after_it() -> None:
    interactions = numbered([0, 0, 0, 0], [1, 2, 3, 3], [10, 20, 30, 40])
    sequences = Sequences.of(interactions)
    builder = BatchBuilder(interactions, sequences, K=4, L=64, M=4, T=15)
    batch = builder.batch(
        one_request(3, 3, 2, 1, 3), projected(interactions), np.random.default_rng(0)
    )
    assert sorted(batch.member_rows) == [0, 1, 2]
    assert batch.candidates[0].tolist() == [1, 0]
    assert batch.recent[0].tolist() == [0, 1, 2, 0]
    # It has no popularity there, and yet counts as bought before.
    named = dict(zip(CROSS_FEATURES, batch.cross[0, 1], strict=True))
    assert named["popularity"] == 0
    assert named["bought"] == 1


def test_a_user_without_behaviors_has_nothing_to_attend_to() -> None:
    interactions, _, builder = small()
    batch = builder.batch(
        one_request(0, 0, 10**6, 1, 2), projected(interactions), np.random.default_rng(0)
    )
    assert len(batch.member_rows) == 0
    assert not batch.interest_mask.any()
    assert not batch.recent_mask.any()
    assert batch.user.tolist() == [[0.0] * len(USER_FEATURES)]


def test_anchors_have_two_other_members_of_their_request() -> None:
    interactions, sequences, builder = small()
    requests = training_requests(interactions, sequences, EVERYTHING, np.random.default_rng(0))
    batch = builder.batch(requests, projected(interactions), np.random.default_rng(0))
    width = batch.interest_mask.shape[1]
    owner = (batch.slot // width)[batch.member_cluster]
    assert len(batch.anchors) > 100
    anchor, first, second = batch.anchors.T
    assert (owner[anchor] == owner[first]).all()
    assert (owner[anchor] == owner[second]).all()
    assert (anchor != first).all()
    assert (anchor != second).all()
    assert (first != second).all()
