from __future__ import annotations

from typing import Any

import pytest

from streaming.events.paths import ABSENT, finder, steps_of, top_of
from streaming.events.rejects import Rejected

EVENT: dict[str, Any] = {
    "user": {"id": "u", "gone": None},
    "items": [{"sku": "a", "price": 5}, {"sku": "b", "price": 12}],
    "@time-of": 7,
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("user.id", "u"),
        ("user.gone", None),
        ("user.gone.deeper", None),
        ("user.name", ABSENT),
        ("nobody.id", ABSENT),
        ("@time-of", 7),
        ("items[1].sku", "b"),
        ("items[-1].sku", "b"),
        ("items[2].sku", ABSENT),
        ("items[?price > `9`].sku | [0]", "b"),
        ("length(items)", 2),
        ("nobody || user.id", "u"),
        ("nobody || nothing", ABSENT),
    ],
)
def test_a_path_finds_what_is_there(path: str, value: object) -> None:
    assert finder(path, "x")(EVENT) == value


@pytest.mark.parametrize("path", ["user.id.first", "user[0]", "items.sku", "length(user.gone)"])
def test_a_step_into_what_is_something_else_is_refused(path: str) -> None:
    with pytest.raises(Rejected, match="item_id"):
        finder(path, "item_id")(EVENT)


def test_steps_are_told_from_expressions() -> None:
    assert steps_of("a[0][1].b-c") == ["a", 0, 1, "b-c"]
    assert top_of("a[0].b") == "a"
    assert top_of("a || b") is None
