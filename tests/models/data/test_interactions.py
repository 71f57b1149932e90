from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import DataError
from models.data.interactions import Attribute, Columns, Entities, Interactions


def columns(**other: Any) -> Columns:
    """Six behaviors out of the order of time; those at 20 stand as b, a in the file."""
    return Columns(
        **{
            "users": pa.array(["u", "v", "u", "w", "v", "u"]),
            "items": pa.array([7, 5, 7, 9, 5, 3]),
            "times": np.array([30, 20, 20, 50, 10, 40]),
            **other,
        }
    )


def test_behaviors_are_sorted_by_time_and_ties_stay_as_they_stood() -> None:
    interactions = columns().interactions("here")
    assert interactions.times.tolist() == [10, 20, 20, 30, 40, 50]
    assert interactions.user_ids == ["v", "u", "w"]
    assert interactions.item_ids == ["", "5", "7", "3", "9"]
    assert interactions.users.tolist() == [0, 0, 1, 1, 1, 2]
    assert interactions.items.tolist() == [1, 1, 2, 2, 3, 4]


def test_what_a_row_says_besides_goes_with_it() -> None:
    interactions = columns(
        actions=pa.array(["view", "buy", None, "view", "", "buy"]),
        dwell_s=pa.array([1, 2, None, 4, 5, 6]),
        values=pa.array([5.0, 4.0, 3.0, None, 1.0, 0.5]),
    ).interactions("here")
    assert interactions.actions is not None
    assert interactions.dwell_s is not None
    assert interactions.values is not None
    assert interactions.action_names == ["", "buy", "view"]
    assert interactions.actions.tolist() == [0, 1, 0, 2, 1, 2]
    assert interactions.actions.dtype == np.uint8
    assert interactions.dwell_s.tolist() == [5, 2, 0, 1, 6, 4]
    np.testing.assert_array_equal(interactions.values, [1, 4, 3, 5, 0.5, np.nan])


def test_actions_that_a_format_knows_keep_their_order() -> None:
    interactions = columns(
        actions=pa.array(["buy", "odd", "buy", "view", "view", "view"]),
        action_names=["view", "cart", "buy"],
    ).interactions("here")
    assert interactions.action_names == ["", "view", "cart", "buy"]
    assert interactions.actions is not None
    assert interactions.actions.tolist() == [1, 0, 3, 3, 1, 1]


def test_chunks_and_dictionaries_are_the_same_column() -> None:
    users = pa.chunked_array(
        [
            pa.array(["u", "v", "u"]).dictionary_encode(),
            pa.array(["w", "v", "u"]).dictionary_encode(),
        ]
    )
    items = pa.chunked_array([[7, 5], [7, 9, 5, 3]])
    assert_alike(
        columns(users=users, items=items).interactions("here"), columns().interactions("here")
    )


def test_entities_are_joined_by_id_and_tell_several_values() -> None:
    items = Entities(
        ids=pa.array([9, 7, 1, 7]),
        titles=pa.array(["Nine", None, "One", "Seven again"]),
        attributes={"genre": pa.array([["a", "b"], ["c", ""], ["d"], ["e"]])},
    )
    users = Entities(pa.array(["u", "v"]), attributes={"age": pa.array([18, 56])})
    interactions = columns().interactions("here", items=items, users=users)
    assert interactions.titles == ["", "", "", "", "Nine"]
    genre = interactions.item_attributes["genre"]
    assert genre.values == ["", "c", "a", "b"]
    assert genre.rows.tolist() == [[0, 0], [0, 0], [1, 0], [0, 0], [2, 3]]
    age = interactions.user_attributes["age"]
    assert age.values == ["", "56", "18"]
    assert age.rows.tolist() == [[1], [2], [0]]


def test_an_attribute_of_a_row_is_what_the_first_behavior_says() -> None:
    interactions = columns(
        item_attributes={"category": pa.array(["late", "x", "first", "y", "x0", None])},
        user_attributes={"country": pa.array(["UK", "FR", "IE", "DE", "BE", "UK"])},
    ).interactions("here")
    category = interactions.item_attributes["category"]
    assert [category.values[row] for row in category.rows[:, 0]] == ["", "x0", "first", "", "y"]
    country = interactions.user_attributes["country"]
    assert [country.values[row] for row in country.rows[:, 0]] == ["BE", "IE", "DE"]


def test_the_head_is_what_the_first_part_alone_gives() -> None:
    rng = np.random.default_rng(0)
    n = 200
    items = Entities(pa.array(range(60)), attributes={"size": pa.array(rng.integers(0, 9, 60))})
    users = Entities(pa.array(range(30)), attributes={"age": pa.array(rng.integers(0, 9, 30))})
    behaviors = Columns(
        users=pa.array(rng.integers(0, 30, n)),
        items=pa.array(rng.integers(0, 60, n)),
        times=rng.integers(0, 50, n),
        actions=pa.array(rng.choice(["view", "buy"], n)),
        action_names=["view", "buy"],
        dwell_s=pa.array(rng.random(n)),
        values=pa.array(rng.random(n)),
        item_attributes={"color": pa.array(rng.choice(["red", "blue", "green"], n))},
    )
    whole = behaviors.interactions("here", items=items, users=users)
    first = behaviors.interactions("here", items=items, users=users, share=0.1)
    assert len(first) == 20
    assert len(first.item_ids) < len(whole.item_ids)
    assert_alike(whole.head(20), first)


def test_numbers_go_by_first_occurrence_however_many_rows_there_are() -> None:
    n = 1_200_000
    ids = np.random.default_rng(0).integers(0, 50_000, n)
    many = Columns(pa.array(ids), pa.array(ids), np.zeros(n, np.int64)).interactions("here")
    distinct, first = np.unique(ids, return_index=True)
    assert many.item_ids[1:] == [str(each) for each in distinct[np.argsort(first)]]
    np.testing.assert_array_equal(np.array(many.user_ids)[many.users].astype(np.int64), ids)


def test_an_empty_head_knows_nobody() -> None:
    head = columns(user_attributes={"x": pa.array(list("abcdef"))}).interactions("here").head(0)
    assert (head.user_ids, head.item_ids) == ([], [""])
    assert head.user_attributes["x"].values == [""]
    assert head.user_attributes["x"].rows.shape == (0, 1)


def test_an_attribute_without_any_value_has_one_empty_column() -> None:
    attribute = Attribute.of(pa.array([None, [], [""]], pa.list_(pa.string())))
    assert attribute.values == [""]
    assert attribute.rows.tolist() == [[0], [0], [0]]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"users": pa.array(["u", None, "u", "w", None, "u"])}, r"here: user_id is null in row 2"),
        ({"items": pa.array([1, 2, 3, 4, 5, None])}, r"here: item_id is null in row 6"),
        (
            {name: pa.array([], pa.string()) for name in ("users", "items")}
            | {"times": np.zeros(0, np.int64)},
            "here holds no behavior",
        ),
    ],
)
def test_what_cannot_be_numbered_is_told_in_one_line(other: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        columns(**other).interactions("here")
    assert "\n" not in str(caught.value)


def with_actions(n: int) -> Columns:
    return Columns(
        users=pa.array(range(n)),
        items=pa.array(range(n)),
        times=np.arange(n),
        actions=pa.array([f"action {i}" for i in range(n)]),
    )


def test_as_many_actions_as_a_byte_holds_are_told_apart() -> None:
    interactions = with_actions(255).interactions("here")
    assert interactions.actions is not None
    assert interactions.actions.tolist() == list(range(1, 256))


def test_more_actions_than_a_byte_holds_are_refused() -> None:
    with pytest.raises(DataError, match="256 different actions, at most 255"):
        with_actions(256).interactions("here")


def assert_alike(one: Interactions, other: Interactions) -> None:
    for name in ("user_ids", "item_ids", "titles", "action_names"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("users", "items", "times", "actions", "dwell_s", "values"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    for name in ("item_attributes", "user_attributes"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert mine[key].values == theirs[key].values
            np.testing.assert_array_equal(mine[key].rows, theirs[key].rows)
