from __future__ import annotations

import numpy as np
import pytest

from infra.behaviors import item_key
from models.bundle import Bundle
from models.features import EMPTY_HISTORY
from models.reference.serving import (
    OfflineRequest,
    add_to_history,
    extract_plainly,
    score_requests,
    score_stored,
)
from tests.bundles import tiny_bundle

NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"))


def keys(*numbers: int) -> np.ndarray:
    return np.array([item_key(f"item-{number}") for number in numbers], np.uint64)


def times(n: int) -> np.ndarray:
    return NOW_MS - 60_000 * np.arange(n, 0, -1, dtype=np.int64)


def test_histories_add_up() -> None:
    first = add_to_history(EMPTY_HISTORY, keys(1, 2, 1), np.array([1000, 2000, 3000]))
    second = add_to_history(first, keys(2, 3), np.array([1500, 9000]))
    counted = dict(zip(second.item_keys, zip(second.counts, second.last, strict=True), strict=True))
    one, two, three = keys(1, 2, 3)
    assert counted == {one: (2, 3), two: (2, 2), three: (1, 9)}
    assert (np.diff(second.item_keys.astype(object)) > 0).all()


def test_interests_are_convex_mixtures_of_their_members(bundle: Bundle) -> None:
    user = extract_plainly(bundle, keys(*range(1, 31)), times(30))
    assert user.tensors["sizes"].sum() == 30
    assert np.linalg.norm(user.tensors["interests"], axis=1).max() <= (
        np.linalg.norm(bundle.embeddings, axis=1).max() + 1e-6
    )


def test_few_behaviors_are_interests_of_their_own(bundle: Bundle) -> None:
    user = extract_plainly(bundle, keys(3, 5), times(2))
    np.testing.assert_allclose(user.tensors["interests"][:2], bundle.embeddings[[3, 5]], rtol=1e-6)
    assert user.tensors["sizes"].tolist() == [1, 1, 0, 0]


def test_newer_behaviors_count_as_if_they_had_been_clustered(bundle: Bundle) -> None:
    """With fewer behaviors than clusters each is an interest anyway, so the CTRs are the same."""
    session = bundle.scorer_session()
    whole = extract_plainly(bundle, keys(3, 5, 3), times(3))
    part = extract_plainly(bundle, keys(3, 5), times(3)[:2])
    newer = type(part)(
        tensors=part.tensors,
        recent=part.recent,
        history=part.history,
        newer=keys(9),
        newer_times=times(3)[2:],
        count=3,
        last_time_ms=int(times(3)[2]),
    )
    all_clustered = extract_plainly(bundle, keys(3, 5, 9), times(3))
    candidates = keys(9, 5, 7, 777)
    mine = score_stored(bundle, session, newer, candidates, NOW_MS)
    same = score_stored(bundle, session, all_clustered, candidates, NOW_MS)
    other = score_stored(bundle, session, whole, candidates, NOW_MS)
    np.testing.assert_allclose(mine, same, atol=1e-6)
    assert np.abs(mine - other).max() > 1e-6


def test_a_stranger_and_an_empty_sequence_are_scored_alike(bundle: Bundle) -> None:
    session = bundle.scorer_session()
    empty = extract_plainly(bundle, keys(), times(0))
    np.testing.assert_array_equal(
        score_stored(bundle, session, None, keys(1, 2), NOW_MS),
        score_stored(bundle, session, empty, keys(1, 2), NOW_MS),
    )


def test_an_unknown_item_gets_a_ctr(bundle: Bundle) -> None:
    user = extract_plainly(bundle, keys(1, 777), times(2))
    ctrs = score_stored(bundle, bundle.scorer_session(), user, keys(777, 778), NOW_MS)
    assert ((ctrs > 0) & (ctrs < 1)).all()
    # Both have row 0, but the user bought one of them before.
    assert ctrs[0] != ctrs[1]


def test_every_request_is_scored_in_turn(bundle: Bundle) -> None:
    session = bundle.scorer_session()
    user = extract_plainly(bundle, keys(1, 2), times(2))
    requests = [
        OfflineRequest(None, keys(1, 2, 3), NOW_MS),
        OfflineRequest(user, keys(2, 3), NOW_MS),
    ]
    first, second = score_requests(bundle, requests)
    np.testing.assert_array_equal(first, score_stored(bundle, session, None, keys(1, 2, 3), NOW_MS))
    np.testing.assert_array_equal(second, score_stored(bundle, session, user, keys(2, 3), NOW_MS))
