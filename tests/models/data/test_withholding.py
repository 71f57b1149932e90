from __future__ import annotations

import numpy as np
import pytest

from models.data.withholding import Withholding

ITEMS = np.tile(np.arange(1, 2001, dtype=np.int32), (50, 1))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_a_share_of_the_items_is_withheld_from_each_request(share: float) -> None:
    withheld = Withholding.draw(50, share, np.random.default_rng(0)).of(ITEMS)
    np.testing.assert_allclose(withheld.mean(1), share, atol=0.05)
    assert withheld.mean() == pytest.approx(share, abs=0.01)


def test_every_item_is_withheld_from_some_requests_and_known_to_others() -> None:
    withheld = Withholding.draw(50, 0.3, np.random.default_rng(0)).of(ITEMS)
    assert withheld.any(0).all()
    assert not withheld.all(0).any()


def test_neighbors_are_withheld_independently() -> None:
    withheld = Withholding.draw(50, 0.5, np.random.default_rng(0)).of(ITEMS)
    assert (withheld[:, 1:] == withheld[:, :-1]).mean() == pytest.approx(0.5, abs=0.01)
    assert (withheld[1:] == withheld[:-1]).mean() == pytest.approx(0.5, abs=0.01)


def test_nothing_may_be_withheld() -> None:
    assert not Withholding.none(50).of(ITEMS).any()


def test_some_requests_withhold_what_they_did_among_all() -> None:
    every = Withholding.draw(50, 0.3, np.random.default_rng(0))
    rows = np.array([7, 3])
    np.testing.assert_array_equal(every.part(rows).of(ITEMS[rows]), every.of(ITEMS)[rows])
