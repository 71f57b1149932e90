from __future__ import annotations

import numpy as np

from models.data.live import evaluation_requests
from models.data.requests import Sequences
from models.measures.baselines import baseline_qualities
from tests.models.generated import planted_interactions


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
