"""A store of ENCODE's under another bundle: requests at once, and states, where there are any, in
the background."""

from __future__ import annotations

import numpy as np
import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from extractor.systems import open_system
from infra.arrays import F32
from infra.behaviors import Source, pack_behavior, partition_owner
from infra.metrics import ScorerMetrics, WorkerMetrics
from infra.segments import SEGMENT
from infra.settings import WorkerSettings
from infra.store import Append, Group, Store
from infra.stores.memory import MemoryStore
from models.bundle import Bundle
from models.reference.serving import StoredUser, extract_plainly, score_stored
from scorer.ids import item_keys
from scorer.messages import HistoryKind
from scorer.ranking import Ranker
from streaming.renewal import Renewal
from streaming.schedule import Reclusterer
from tests.bundles import tiny_bundle

TOPIC = "behaviors"
OWNER = partition_owner(TOPIC, 0)
NOW_MS = 1_700_000_000_000
LENGTH = SEGMENT + 9
ITEMS = [f"item-{1 + 7 * i % 53}" for i in range(LENGTH)]
"""Of which some are unknown to the bundles."""
CANDIDATES = [f"item-{i}" for i in range(1, 61)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("bundles")
    return {
        system: Bundle.load(tiny_bundle(directory / system, L=SEGMENT, system=system))
        for system in ("encode", "sdim", "twin")
    }


class Service:
    """A worker and a scorer of one bundle."""

    def __init__(self, store: Store, bundle: Bundle) -> None:
        self.store, self.bundle = store, bundle
        system = open_system(bundle)
        metrics = WorkerMetrics(CollectorRegistry())
        self.ranker = Ranker(store, bundle, system, ScorerMetrics(CollectorRegistry()))
        self.renewal = Renewal(store, system, metrics, per_second=1e9)
        self.renewal.set_partitions({TP(TOPIC, 0)}, [TP(TOPIC, 0)])
        self.reclusterer = Reclusterer(
            store, system, WorkerSettings(), metrics, clock=lambda: NOW_MS
        )
        self.reclusterer.set_owners([OWNER])

    def recluster(self) -> None:
        while self.reclusterer.run_once():
            pass
        self.reclusterer.stop()

    def ranks_as(self, kind: HistoryKind, plain: StoredUser) -> None:
        """That the user's CTRs are those of a plain evaluation."""
        ranking = self.ranker.rank("u", CANDIDATES, NOW_MS)
        expected = self.score(plain)
        assert ranking.history == kind
        np.testing.assert_allclose(ranking.ctrs, expected, rtol=0, atol=1e-5)

    def score(self, plain: StoredUser) -> F32:
        session = self.bundle.scorer_session()
        return score_stored(self.bundle, session, plain, item_keys(CANDIDATES), NOW_MS)


KEYS = item_keys(ITEMS)
TIMES = NOW_MS - 60_000 * np.arange(LENGTH, 0, -1, dtype=np.int64)


@pytest.fixture
def encode(bundles: dict[str, Bundle]) -> Service:
    """ENCODE's, in whose store "u" has a state."""
    store = MemoryStore()
    behaviors = [
        pack_behavior(int(key), int(time), 0, 0, 2) for key, time in zip(KEYS, TIMES, strict=True)
    ]
    append = Append("u", behaviors, [0] * LENGTH, list(range(LENGTH)))
    encode = Service(store, bundles["encode"])
    store.append([Group(Source(1, OWNER), [append])], NOW_MS, digest=encode.bundle.digest)
    encode.recluster()
    assert encode.ranker.rank("u", CANDIDATES, NOW_MS).history == "interests"
    return encode


def test_users_of_another_system_are_ranked_at_once_and_extracted_anew(
    encode: Service, bundles: dict[str, Bundle]
) -> None:
    sdim = Service(encode.store, bundles["sdim"])
    # Without a state more behaviors are newer than L: the last L are extracted on the spot.
    sdim.ranks_as("sequence", extract_plainly(sdim.bundle, KEYS, TIMES))
    while sdim.renewal.step():
        pass
    sdim.recluster()
    covered = extract_plainly(sdim.bundle, KEYS[:SEGMENT], TIMES[:SEGMENT])
    known = StoredUser(
        tensors=covered.tensors,
        recent=covered.recent,
        history=covered.history,
        newer=KEYS[SEGMENT:],
        newer_times=TIMES[SEGMENT:],
        count=LENGTH,
        last_time_ms=int(TIMES[-1]),
    )
    sdim.ranks_as("interests", known)
    # And whoever still serves the other bundle finds its states where they were.
    assert encode.ranker.rank("u", CANDIDATES, NOW_MS).history == "interests"


def test_a_system_that_stores_nothing_ranks_from_the_sequence_and_has_nothing_to_do(
    encode: Service, bundles: dict[str, Bundle]
) -> None:
    twin = Service(encode.store, bundles["twin"])
    twin.ranks_as("sequence", extract_plainly(twin.bundle, KEYS, TIMES))
    twin.recluster()
    assert not encode.store.due(OWNER, twin.bundle.digest, 10)
    assert encode.ranker.rank("u", CANDIDATES, NOW_MS).history == "interests"
