from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.data.divisions import LastOfUser
from models.data.live import evaluation_requests
from models.data.protocols import Rated
from models.data.requests import Sequences
from models.data.schema import Inputs, Schema
from models.data.splits import split_requests
from models.measures.baselines import baseline_qualities, rate_auc, rate_scores
from tests.models.generated import numbered, planted_interactions


def test_rules_know_what_was_bought_before() -> None:
    interactions = planted_interactions(users=10, items=20, baskets=10)
    sequences = Sequences.of(interactions)
    requests = evaluation_requests(
        interactions, sequences, 300, 60, np.random.default_rng(0), negatives=9
    )
    rules = baseline_qualities(interactions, sequences, requests)
    # Half of the items are never bought by a user, and the positive never is of that half.
    assert rules["auc_repeat"] > 0.65
    assert 0.3 < rules["auc_popularity"] < 0.7


def test_rates_tell_good_items_and_users_who_are_easily_pleased() -> None:
    rng = np.random.default_rng(0)
    users, items = np.tile(np.arange(40), 30), rng.integers(0, 25, 1200)
    pleased = rng.random(1200) < (0.1 + 0.4 * (users % 2) + 0.4 * (items % 2))
    answers = replace(
        numbered(users, items, np.arange(1200)),
        values=pleased.astype(np.float32),
        actions=np.where(pleased, 1, 2).astype(np.uint8),
        action_names=["", "right", "wrong"],
    )
    split = split_requests(answers, Rated(threshold=1.0), LastOfUser(3, 6))
    schema = Schema(positive=("right",))
    rates = Inputs.of(split.interactions, schema, split.n_training).rates
    assert rates is not None
    scores = rate_scores(split, split.test, rates, L=20)
    assert scores.shape == (240, 1)
    assert rate_auc(split, split.test, rates, L=20) > 0.7
