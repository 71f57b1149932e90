"""Whole histories of a user, which every store answers as the model of plain lists does."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings

from infra.behaviors import Source, partition_source
from infra.records import sealed
from infra.segments import SEGMENT
from infra.store import Behaviors, InterestWrite, Store, Version, Written
from tests.aerospike_double import aerospike_server
from tests.infra.histories import (
    OWNERS,
    SOURCES,
    TTL_MS,
    MarkDue,
    Model,
    Operation,
    PutInterests,
    Send,
    Wait,
    histories,
)
from tests.infra.stores.test_contract import OpenStore, open_store

__all__ = ["aerospike_server", "open_store"]

LENGTH = 130


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
        self._interests: InterestWrite | None = None

    def do(self, operation: Operation) -> None:
        """Do it to both, and compare all that the store answers."""
        store, model, user = self._store, self._model, self._model.user
        match operation:
            case Send():
                events = model.events(operation)
                keys = model.source_keys[operation.source], model.owner_keys[operation.owner]
                done = store.append(Source(*keys), [events], model.now_ms)
                assert (done.applied, done.replayed, done.duplicates) == model.append(
                    operation, events
                )
            case PutInterests():
                self._put_interests(operation)
            case MarkDue():
                model.mark_due(operation)
                if model.record:  # until it is swept, one whose time is over may still be marked
                    store.mark_due(model.owner_keys[operation.owner], [user], model.now_ms)
            case Wait():
                model.wait(operation)
        self._compare()

    def _put_interests(self, put: PutInterests) -> None:
        before = self._model.record and self._model.record.covered
        version = self._model.put_interests(put)
        payload = b"%d" % self._model.now_ms
        write = InterestWrite(self._model.user, version or Version(1, 1), payload)
        (written,) = self._store.put_interests([write], self._model.now_ms)
        if version is None:
            assert written == Written.GONE
        elif before and version.count < before:
            assert written == Written.STALE
        else:
            assert written == Written.STORED
            self._interests = write

    def _compare(self) -> None:
        record, user = self._model.record, self._model.user
        (sequence,) = self._store.sequences([user])
        (profile,) = self._store.profiles([user])
        if record is None:
            assert (sequence, profile) == (None, None)
            return
        assert sequence is not None
        assert (sequence.version, sequence.marks) == (record.version, record.marks)
        assert packed(sequence.behaviors) == record.newest(LENGTH)
        assert profile is not None
        count = len(record.behaviors)
        recent = max(count % SEGMENT, min(count - record.covered, LENGTH))
        assert packed(profile.recent) == record.newest(recent)
        interests = self._interests
        if interests is None or interests.version.epoch != record.epoch:
            assert profile.interests is None
        else:
            assert profile.interests == interests.payload
            assert profile.interests_version == interests.version
        for owner in self._model.owner_keys:
            due = [(user, record.since, max(0, sealed(count) - record.covered))]
            mine = bool(record.since) and record.owner == owner
            assert self._store.due(owner, 10) == (due if mine else [])


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
