from __future__ import annotations

import msgspec
import numpy as np
import pytest

from scorer.ids import sound_ids
from scorer.messages import RankedItem, ranked_items
from scorer.ranked import ranked_json

RATES = [0, 1, 0.5, 1e-9, 4e-10, 6e-10, 1e-12, 0.1, 0.99999994, 1e-38, 1 / 3, 0.123456789]


@pytest.mark.parametrize("top_k", [None, 1, 5, 100])
def test_items_are_written_as_msgspec_writes_them(top_k: int | None) -> None:
    rng = np.random.default_rng(7)
    ctrs = np.array([*RATES, *rng.random(500), *rng.random(500) ** 9, *RATES], np.float32)
    items = [f"item-{place % 300}" for place in range(len(ctrs) - 1)] + ["größe\u2028😀"]
    written = ranked_json(sound_ids(items), ctrs, top_k)
    assert written is not None
    found = msgspec.json.decode(written, type=list[RankedItem])
    assert found == ranked_items(items, ctrs, top_k)


@pytest.mark.parametrize("item", ['a"b', "a\\b", "a\nb", "\0"])
def test_what_json_escapes_is_left_to_msgspec(item: str) -> None:
    assert ranked_json(sound_ids(["a", item]), np.zeros(2, np.float32), None) is None


def test_what_is_not_answered_need_not_be_written() -> None:
    ctrs = np.array([0.5, 0.25], np.float32)
    assert ranked_json(sound_ids(["a", '"']), ctrs, 1) == b'[{"item":"a","ctr":0.5}]'
