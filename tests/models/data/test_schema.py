from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infra.errors import TrainingError
from models.data.interactions import Attribute, Interactions
from models.data.schema import Inputs, Schema
from models.features import AGE_BUCKETS, DWELL_BUCKETS, dwell_bucket
from tests.models.generated import numbered


def described() -> Interactions:
    """Three items of one or two genres, two users of a city, actions and dwell times."""
    genres = np.array([[0, 0], [2, 1], [1, 0], [0, 0]], np.int32)
    return replace(
        numbered([0, 1, 0], [1, 2, 3], [1, 2, 3]),
        actions=np.ones(3, np.uint8),
        action_names=["", "buy"],
        dwell_s=np.ones(3, np.float32),
        item_attributes={
            "genre": Attribute(["", "A", "B"], genres),
            "brand": Attribute(["", "X"], np.array([[0], [1], [0], [1]], np.int32)),
        },
        user_attributes={"city": Attribute(["", "C"], np.array([[1], [0]], np.int32))},
    )


def test_what_a_schema_names_becomes_tables_of_rows() -> None:
    schema = Schema(
        user=("city", "id"), item=("genre",), category="brand", behavior=("action", "dwell", "age")
    )
    inputs = Inputs.of(described(), schema)
    assert (inputs.n_items, inputs.n_users) == (3, 2)
    assert inputs.items["genre"].tolist() == [[0, 0], [2, 1], [1, 0], [0, 0]]
    assert inputs.users["city"].tolist() == [[1], [0]]
    assert inputs.users["id"].tolist() == [[1], [2]]  # row 0 is for users who are not known
    assert inputs.heights == {
        "item.genre": 3,
        "item.brand": 2,
        "user.city": 2,
        "user.id": 3,
        "behavior.action": 2,
        "behavior.dwell": DWELL_BUCKETS,
        "behavior.age": AGE_BUCKETS,
    }


def test_the_actions_of_the_data_keep_their_names() -> None:
    assert Inputs.of(described(), Schema()).actions == ("buy",)
    assert Inputs.of(numbered([0], [1], [1]), Schema()).actions == ()


def test_a_category_is_the_first_value_of_its_attribute() -> None:
    inputs = Inputs.of(described(), Schema(category="genre"))
    assert inputs.categories.tolist() == [0, 2, 1, 0]


def test_without_a_category_all_are_0() -> None:
    assert Inputs.of(described(), Schema()).categories.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Schema(item=("colour",)), "schema.item names 'colour'.*they have: genre, brand"),
        (Schema(category="colour"), "names 'colour'.*they have: genre, brand"),
        (Schema(user=("age",)), "schema.user names 'age'.*they have: city"),
    ],
)
def test_an_attribute_that_the_data_lack_is_named(schema: Schema, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        Inputs.of(described(), schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("feature", ["action", "dwell"])
def test_a_feature_that_was_not_recorded_is_named(feature: str) -> None:
    schema = Schema(behavior=(feature,))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=f"schema.behavior names '{feature}'"):
        Inputs.of(numbered([0], [1], [1]), schema)


def test_dwell_times_fall_into_powers_of_two() -> None:
    dwell_s = np.array([-3, 0, 0.2, 1, 1.9, 2, 3.9, 4, 2**13, 2**14, 2**15, 1e9], np.float32)
    assert dwell_bucket(dwell_s).tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 14, 15, 15, 15]


def acted(*actions: int, values: list[float] | None = None) -> Interactions:
    """A behavior with each action, of "look", "like" and "buy"."""
    count = len(actions)
    return replace(
        numbered([0] * count, range(count), range(count)),
        actions=np.array(actions, np.uint8),
        action_names=["", "look", "like", "buy"],
        values=None if values is None else np.array(values, np.float32),
    )


def test_the_action_is_seen_where_the_data_tell_actions_apart() -> None:
    assert Schema().resolved(acted(1, 2)).behavior == ("action",)
    assert Schema().resolved(acted(1, 1)).behavior == ()
    assert Schema().resolved(numbered([0], [1], [1])).behavior == ()


def test_what_a_schema_says_of_behaviors_stays() -> None:
    assert Schema(behavior=()).resolved(acted(1, 2)).behavior == ()
    assert Schema(behavior=("age",)).resolved(acted(1, 2)).behavior == ("age",)


def test_the_positive_actions_are_those_of_positive_labels() -> None:
    rated = acted(1, 2, 3, 2, values=[2, 4, 5, np.nan])
    assert Schema().resolved(rated, threshold=4).positive == ("like", "buy")


def test_an_action_of_both_labels_is_not_positive() -> None:
    assert Schema().resolved(acted(1, 2, 2, values=[2, 4, 1]), threshold=4).positive == ()


def test_where_all_actions_are_positive_there_are_no_rates() -> None:
    assert Schema().resolved(acted(1, 2, values=[5, 4]), threshold=4).positive == ()


def test_without_labels_no_action_is_positive_by_itself() -> None:
    assert Schema().resolved(acted(1, 2)).positive == ()
    assert Inputs.of(acted(1, 2), Schema()).rates is None


def test_actions_of_which_nothing_is_learned_are_known() -> None:
    assert Inputs.of(acted(1, 3, 2), Schema(), n_training=2).untaught == (0, 2)


def test_the_base_is_the_share_of_what_is_learned_from() -> None:
    inputs = Inputs.of(acted(2, 1, 1, 0, 2, 2), Schema(positive=("like",)), n_training=4)
    assert inputs.rates is not None
    assert inputs.rates.base == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (("lke",), "names the action 'lke', which the data do not have; did you mean like"),
        (("buy",), "'buy', which the data do not have"),
        (("like", "look"), "names every action"),
    ],
)
def test_positive_actions_that_make_no_rate_are_told(
    positive: tuple[str, ...], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        Schema(positive=positive).resolved(acted(1, 2))
