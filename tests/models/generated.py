"""Generated interactions with a planted signal."""

from __future__ import annotations

import numpy as np

from models.data.interactions import Interactions


def planted_interactions(
    users: int = 60, items: int = 40, baskets: int = 12, size: int = 4, seed: int = 0
) -> Interactions:
    """Users who buy from one half of the items each: the history tells which half.

    Every basket holds ``size`` distinct items; users take turns, so that time is shared.
    """
    rng = np.random.default_rng(seed)
    half = items // 2
    bought, buyers, times = [], [], []
    for basket in range(baskets):
        for user in range(users):
            taste = user % 2
            chosen = rng.choice(half, size, replace=False) + taste * half
            bought.append(chosen)
            buyers.append(np.full(size, user))
            times.append(np.full(size, 1_600_000_000 + (basket * users + user) * 3600))
    return numbered(np.concatenate(buyers), np.concatenate(bought), np.concatenate(times))


def numbered(users: object, items: object, times: object) -> Interactions:
    """Interactions of arbitrary numbers, renumbered by first occurrence as a reader does it."""
    user_codes, user_ids = _by_occurrence(np.asarray(users))
    item_codes, item_ids = _by_occurrence(np.asarray(items))
    return Interactions(
        user_ids=[f"user-{code}" for code in user_ids],
        item_ids=["", *(f"item-{code}" for code in item_ids)],
        titles=["", *(f"Item {code}" for code in item_ids)],
        users=user_codes.astype(np.int32),
        items=(item_codes + 1).astype(np.int32),
        times=np.asarray(times, np.int64),
    )


def _by_occurrence(values: np.ndarray) -> tuple[np.ndarray, list[int]]:
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    code = np.empty(len(order), np.int64)
    code[order] = np.arange(len(order))
    return code[inverse], distinct[order].tolist()
