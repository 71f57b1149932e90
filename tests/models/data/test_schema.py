from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infra.errors import TrainingError
from models.data.interactions import Attribute, Interactions
from models.data.schema import AGE_BUCKETS, DWELL_BUCKETS, Inputs, Schema, dwell_bucket
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
