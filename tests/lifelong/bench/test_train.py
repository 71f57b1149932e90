"""Both sides train on the same samples, and a result says what was compared with what."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lifelong.bench.train import (
    FULL,
    LONG,
    QUICK,
    SHORT,
    Load,
    Ours,
    RandomSamples,
    _result,
    _rounds,
)

LENGTH = 20


@pytest.fixture(scope="module")
def samples() -> RandomSamples:
    return RandomSamples.draw(LENGTH, size=64, users=5)


def test_samples_are_the_same_every_time(samples: RandomSamples) -> None:
    again = RandomSamples.draw(LENGTH, size=64, users=5)
    assert np.array_equal(samples.items, again.items)
    assert np.array_equal(samples.place, again.place)


def test_both_sides_see_the_same_behaviors(samples: RandomSamples, tmp_path: Path) -> None:
    samples.write(tmp_path)
    train = pq.read_table(tmp_path / "train.parquet").to_pydict()
    users = pq.read_table(tmp_path / "users.parquet")["full_item_seq"].to_pylist()
    theirs = [
        users[user][:size][-LENGTH:]
        for user, size in zip(train["user_index"], train["seq_len"], strict=True)
    ]
    ours = list(Ours(samples, 16)._gathered(LENGTH))
    assert np.array_equal(np.concatenate([batch.rows.numpy() for batch in ours]), theirs)
    assert all(bool(batch.mask.all()) for batch in ours)


def test_both_sides_see_the_same_candidates(samples: RandomSamples, tmp_path: Path) -> None:
    samples.write(tmp_path)
    train = pq.read_table(tmp_path / "train.parquet").to_pydict()
    ours = list(Ours(samples, 16)._gathered(LENGTH))
    candidates = np.concatenate([batch.candidates.numpy()[:, 0] for batch in ours])
    assert candidates.tolist() == train["item_index"]


def test_the_description_names_every_column(samples: RandomSamples, tmp_path: Path) -> None:
    samples.write(tmp_path)
    described = json.loads((tmp_path / "feature_map.json").read_text())
    names = {name for feature in described["features"] for name in feature}
    columns = set(pq.read_schema(tmp_path / "train.parquet").names)
    assert columns <= names | set(described["labels"])


@pytest.mark.parametrize("name", ["DIN", "DIN-L", "DIN-L, activation unit", "ENCODE"])
@pytest.mark.parametrize("loading", [True, False])
def test_ours_trains(samples: RandomSamples, name: str, *, loading: bool) -> None:
    assert Ours(samples, 16).samples_per_second(name, LENGTH, 1, loading=loading) > 0


@pytest.mark.parametrize("load", [FULL, QUICK])
def test_something_is_left_to_count_after_the_warm_up(load: Load) -> None:
    assert load.batches // 2 - 1 - load.warm_up > 0
    assert SHORT < LONG


def test_systems_alternate() -> None:
    order: list[str] = []

    def system(name: str) -> float:
        order.append(name)
        return 1.0

    _rounds({"a": lambda _: system("a"), "b": lambda _: system("b")}, 2)
    assert all(one != other for one, other in pairwise(order))


def test_ratios_are_medians_of_rounds_and_like_is_compared_with_like() -> None:
    whole = {
        "DIN-L": [10.0, 40.0, 30.0],
        "FuxiCTR DIN-L": [10.0, 10.0, 10.0],
        "DIN-L, activation unit": [20.0, 20.0, 20.0],
        f"DIN-L, L = {LONG}": [3.0, 3.0, 3.0],
        f"ENCODE, L = {LONG}": [6.0, 6.0, 6.0],
    }
    result = _result(whole, whole, threads=1)
    assert result["ratios"] == {"FuxiCTR DIN-L": 3.0, "DIN-L, activation unit": 2.0}
    assert result["spread"]["DIN-L"] == [10.0, 40.0]
    assert result["encode_cost"] == 0.5
