from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infra.behaviors import item_key
from infra.errors import BundleIncompatible
from models.bundle import Catalog, Texts

ODD = ["", "é", "名前", "\x00", "a" * 10_000, "🧦 two words", "line\nbreak"]


def catalog_of(item_ids: Sequence[str]) -> Catalog:
    n = min(len(item_ids), 1000)
    return Catalog.of(item_ids, [""] * n, np.zeros(n, np.float32))


def refused(item_ids: Any, *words: str) -> None:
    with pytest.raises(BundleIncompatible) as caught:
        catalog_of(item_ids)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_texts_come_back_whatever_is_in_them() -> None:
    texts = Texts.of(ODD)
    assert list(texts) == ODD
    assert texts[-1] == ODD[-1]
    assert texts[1:3] == ODD[1:3]
    assert len(texts) == len(ODD)
    assert "名前" in texts


def test_no_texts_are_a_list_too() -> None:
    assert list(Texts.of([])) == []
    with pytest.raises(IndexError):
        Texts.of([])[0]


def test_any_id_is_found_by_its_key() -> None:
    keys = np.array([item_key(item) for item in (*ODD[1:], "nobody")], np.uint64)
    assert catalog_of(ODD).rows(keys).tolist() == [1, 2, 3, 4, 5, 6, 0]


def test_a_catalog_may_have_no_items() -> None:
    assert catalog_of([""]).rows(np.arange(3, dtype=np.uint64)).tolist() == [0, 0, 0]


def test_an_id_that_is_there_twice_is_refused() -> None:
    refused(["", "a", "b", "a"], "items 1 and 3", "'a'", "leave one out")


def test_an_empty_id_is_refused() -> None:
    refused(["", "a", ""], "item 2 of 2 has an empty id")


def test_half_of_a_surrogate_pair_is_refused() -> None:
    refused(["", "a", "\ud800"], r"'\ud800'", "no Unicode text")


def test_more_items_than_rows_can_number_are_refused() -> None:
    refused(_Many(), "2147483648 items are more than")


class _Many(Sequence[str]):
    def __len__(self) -> int:
        return 2**31 + 1

    def __getitem__(self, at: Any) -> Any:
        raise AssertionError("looked at")
