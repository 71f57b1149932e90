"""Whole histories of a user, which every store answers as the model of plain lists does."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings

from infra.behaviors import Source, partition_source
from infra.segments import SEGMENT
from infra.store import Behaviors, Group, InterestWrite, Profile, Store, Version, Written
from tests.aerospike_double import aerospike_server
from tests.infra.histories import (
    BUNDLES,
    OWNERS,
    SOURCES,
    TTL_MS,
    Forget,
    MarkDue,
    Merge,
    Model,
    Operation,
    PutInterests,
    Record,
    Send,
    Wait,
    histories,
)
from tests.infra.stores.test_contract import OpenStore, open_store
from tests.redis_server import redis_server, shared_redis

__all__ = ["aerospike_server", "open_store", "redis_server", "shared_redis"]

LENGTH = 130
DIGESTS = [bytes([7 + i]) * 16 for i in range(BUNDLES)]


class Clock:
    """The time of the history under way."""

    model: Model | None = None

    def __call__(self) -> int:
        return self.model.now_ms if self.model else 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(open_store: OpenStore, clock: Clock) -> Store:
    return open_store(length=LENGTH, ttl_s=TTL_MS / 1000, clock=clock)


def packed(behaviors: Behaviors) -> list[bytes]:
    return [behavior.tobytes() for behavior in behaviors]


class Kept:
    """One user of a store, and the model of them beside it."""

    def __init__(self, store: Store, model: Model) -> None:
        self._store = store
        self._model = model
        self._interests: dict[int, InterestWrite] = {}

    def do(self, operation: Operation) -> None:
        """Do it to both, and compare all that the store answers."""
        store, model, user = self._store, self._model, self._model.user
        match operation:
            case Send():
                events = model.events(operation)
                keys = model.source_keys[operation.source], model.owner_keys[operation.owner]
                digest = None if operation.bundle is None else DIGESTS[operation.bundle]
                groups = [Group(Source(*keys), [events])]
                done = store.append(groups, model.now_ms, digest=digest)
                assert done == model.append(operation, events)
            case PutInterests():
                self._put_interests(operation)
            case MarkDue():
                marked = model.mark_due(operation)
                owner, digest = model.owner_keys[operation.owner], DIGESTS[operation.bundle]
                assert store.mark_due(owner, digest, [user], model.now_ms) == marked
            case Forget():
                known = model.forget()
                assert store.forget([user], model.now_ms) == known
                self._interests = {}
            case Merge():
                history, claim = model.history(operation)
                digest = None if operation.bundle is None else DIGESTS[operation.bundle]
                merged = store.merge([history], claim, model.now_ms, digest=digest)
                assert merged == model.merge(operation, history, claim, LENGTH)
            case Wait():
                model.wait(operation)
        self._compare()

    def _put_interests(self, put: PutInterests) -> None:
        known = self._model.known
        before = known.covered.get(put.bundle, 0) if known else 0
        version = self._model.put_interests(put)
        payload = b"%d" % self._model.now_ms
        digest = DIGESTS[put.bundle]
        write = InterestWrite(self._model.user, digest, version or Version(1, 1), payload)
        (written,) = self._store.put_interests([write], self._model.now_ms)
        if version is None:
            assert written == Written.GONE
        elif before and version.count < before:
            assert written == Written.STALE
        else:
            assert written == Written.STORED
            self._interests[put.bundle] = write

    def _compare(self) -> None:
        record, user = self._model.known, self._model.user
        (sequence,) = self._store.sequences([user])
        profiles = [self._store.profiles([user], digest)[0] for digest in DIGESTS]
        if record is None:
            assert (sequence, profiles) == (None, [None] * BUNDLES)
            return
        assert sequence is not None
        assert (sequence.version, sequence.marks) == (record.version, record.marks)
        assert packed(sequence.behaviors) == record.newest(LENGTH)
        for bundle, profile in enumerate(profiles):
            self._compare_bundle(record, bundle, profile)

    def _compare_bundle(self, record: Record, bundle: int, profile: Profile | None) -> None:
        assert profile is not None
        count = record.count
        covered = record.covered.get(bundle, 0)
        recent = max(count % SEGMENT, min(count - covered, LENGTH))
        assert packed(profile.recent) == record.newest(recent)
        interests = self._interests.get(bundle)
        if not covered or interests is None or interests.version.epoch != record.epoch:
            assert profile.interests is None
        else:
            assert profile.interests == interests.payload
            assert profile.interests_version == interests.version
        for owner in self._model.owner_keys:
            since = record.since.get(bundle)
            due = [(self._model.user, since, record.lacking(bundle))]
            mine = since is not None and record.owner == owner
            assert self._store.due(owner, DIGESTS[bundle], 10) == (due if mine else [])


numbers = itertools.count()


# One store serves all histories, each with a user, sources and owners of its own.
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(histories)
def test_a_store_answers_what_the_history_says(
    store: Store, clock: Clock, history: list[Operation]
) -> None:
    number = next(numbers)
    sources = [partition_source(f"topic-{number}", "id", i) for i in range(max(SOURCES, OWNERS))]
    clock.model = Model(
        f"user-{number}",
        [source.key for source in sources[:SOURCES]],
        [source.owner for source in sources[:OWNERS]],
    )
    kept = Kept(store, clock.model)
    for operation in history:
        kept.do(operation)
