"""Writing batches: what cannot be watched is tried again, and what never can becomes a letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from infra.behaviors import Source, pack_behavior
from infra.errors import BrokerError, RecordTooLarge, StoreCorrupt, StoreFull, StoreUnavailable
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.settings import EventSettings, Settings
from infra.store import Appended, Claim, Group, History
from streaming.events.decoder import Decoded, EventDecoder
from streaming.writer import BatchWriter, GivenUp, Writable
from tests.streaming.running import NOW, KeptLetters, WatchedStore, event

SOURCE = Source(key=1, owner=2)
DIGEST, OTHER = b"b" * 16, b"c" * 16
OUTCOMES = ("applied", "duplicate", "replayed", "deleted", "covered", "rejected")


def batch_of(*records: tuple[str, bytes | None], begin: int = 10) -> Any:
    made = [
        SimpleNamespace(offset=begin + n, key=key.encode(), value=value, timestamp=NOW, headers=())
        for n, (key, value) in enumerate(records)
    ]
    tp = TP("behaviors", 0)
    last = made[-1].offset
    return SimpleNamespace(tp=tp, records=made, first=begin, last=last, next=last + 1)


class WatchedWriter:
    """A writer with its store and its letters; pauses take no time."""

    def __init__(
        self,
        store: WatchedStore | None = None,
        digest: bytes | None = None,
        settings: dict[str, Any] | None = None,
        decoder: EventDecoder | None = None,
    ) -> None:
        self.store = store or WatchedStore()
        self.letters = KeptLetters()
        self.metrics = WorkerMetrics(CollectorRegistry())
        self.pauses: list[float] = []
        self.writer = BatchWriter(
            Settings.model_validate({"worker": {"retry_max_s": 1.0}, **(settings or {})}),
            self.store,
            self.letters,
            self.metrics,
            digest=digest,
            clock=lambda: NOW + 10_000,
            sleep=self._sleep,
            decoders=None if decoder is None else {"behaviors": decoder},
        )
        self.on_pause: Callable[[], object] = lambda: None

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.on_pause()

    async def write(self, batch: Any, wanted: bool = True) -> None:
        decoded = await self.writer.decode(batch)
        await self.writer.write([Writable(batch, decoded, SOURCE)], lambda: wanted)

    async def write_group(self, *batches: tuple[Any, Source]) -> None:
        group = [
            Writable(batch, await self.writer.decode(batch), source) for batch, source in batches
        ]
        await self.writer.write(group, lambda: True)

    def count(self, outcome: str) -> float:
        return float(self.metrics.events.labels(outcome)._value.get())


async def test_a_batch_is_stored_by_user() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(("a", event("a", 1)), ("b", event("b", 1)), ("a", event("a", 2))))

    assert watched.store.counts() == {"a": 2, "b": 1}
    assert watched.count("applied") == 3
    assert watched.letters.letters == []


async def test_rejects_become_letters_with_their_origin() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(("a", event("a", 1)), ("a", b"oops")))

    (letter,) = watched.letters.letters
    assert (letter.reason, letter.value, letter.key) == ("not_json", b"oops", b"a")
    assert (letter.topic, letter.partition, letter.offset) == ("behaviors", 0, 11)
    assert letter.timestamp == NOW
    assert watched.count("rejected") == 1
    assert watched.metrics.rejects.labels("not_json")._value.get() == 1


async def test_a_failing_store_is_tried_again_with_growing_pauses() -> None:
    watched = WatchedWriter()
    watched.store.failure = lambda _s, _a: StoreFull("no room") if len(watched.pauses) < 7 else None

    await watched.write(batch_of(("a", event("a"))))

    assert watched.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert watched.store.counts() == {"a": 1}
    assert watched.metrics.store_errors.labels("StoreFull", "")._value.get() == 7
    assert watched.metrics.store_retries._value.get() == 7
    assert watched.writer.progress.failure is None


async def test_failures_of_a_server_are_counted_by_its_code() -> None:
    watched = WatchedWriter()
    overloaded = StoreUnavailable("overloaded")
    overloaded.code = 18
    watched.store.failure = lambda _s, _a: overloaded if not watched.pauses else None

    await watched.write(batch_of(("a", event("a"))))

    assert watched.metrics.store_errors.labels("StoreUnavailable", "18")._value.get() == 1


def stored(watched: WatchedWriter) -> tuple[float, float]:
    """How many events were stored, and the mean of the seconds it took."""
    (metric,) = watched.metrics.stored_seconds.collect()
    found = {sample.name.rpartition("_")[2]: sample.value for sample in metric.samples}
    return found["count"], found["sum"] / max(1, found["count"])


async def test_events_are_timed_from_kafka_into_the_store() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(("a", event("a", 1)), ("b", event("b", 1))))

    assert stored(watched) == (2, 10.0)


async def test_events_that_come_again_are_not_timed() -> None:
    watched = WatchedWriter()
    batch = batch_of(("a", event("a", 1)))

    await watched.write(batch)
    await watched.write(batch)

    assert stored(watched) == (1, 10.0)


async def test_a_transaction_is_measured_by_its_events() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(("a", event("a", 1)), ("a", b"oops")))

    assert watched.metrics.group_events._sum.get() == 2


async def test_a_failure_is_told_while_it_lasts() -> None:
    watched = WatchedWriter()
    told: list[str | None] = []
    watched.on_pause = lambda: told.append(watched.writer.progress.failure)
    watched.store.failure = lambda _s, _a: StoreUnavailable("gone") if not told else None

    await watched.write(batch_of(("a", event("a"))))

    assert told == ["StoreUnavailable: gone"]


async def test_an_error_of_any_kind_loses_nothing() -> None:
    watched = WatchedWriter()
    watched.store.failure = lambda _s, _a: ZeroDivisionError() if not watched.pauses else None

    await watched.write(batch_of(("a", event("a"))))

    assert watched.store.counts() == {"a": 1}


async def test_letters_that_cannot_be_delivered_hold_the_batch() -> None:
    watched = WatchedWriter()
    watched.letters.failure = BrokerError("no such topic")

    def heal() -> None:
        if len(watched.pauses) == 3:
            watched.letters.failure = None

    watched.on_pause = heal

    await watched.write(batch_of(("a", b"oops")))

    assert watched.letters.failures == 3
    assert len(watched.letters.letters) == 1


async def test_a_batch_that_is_not_ours_any_more_is_given_up() -> None:
    watched = WatchedWriter()
    watched.store.failure = lambda _s, _a: StoreUnavailable("gone")

    with pytest.raises(GivenUp):
        await watched.write(batch_of(("a", event("a"))), wanted=False)

    assert len(watched.pauses) == 1
    assert watched.writer.progress.failure is None


class PickyStore(WatchedStore):
    """Cannot hold some users."""

    def __init__(self, refused: dict[str, Exception]) -> None:
        super().__init__()
        self.refused = refused

    def append(
        self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
    ) -> Appended:
        for append in (append for group in groups for append in group.appends):
            if append.user in self.refused:
                raise self.refused[append.user]
        return super().append(groups, now_ms, digest=digest)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RecordTooLarge("the record of 'b' is too large"), "record_too_large"),
        (StoreCorrupt("the record of 'b' is damaged"), "record_corrupt"),
    ],
)
async def test_a_user_that_cannot_be_stored_does_not_hold_the_others(
    error: Exception, reason: str
) -> None:
    watched = WatchedWriter(PickyStore({"b": error}))
    batch = batch_of(
        ("a", event("a")), ("b", event("b", 1)), ("c", event("c")), ("b", event("b", 2))
    )

    await watched.write(batch)

    assert watched.store.counts() == {"a": 1, "c": 1}
    assert [(x.key, x.offset, x.reason) for x in watched.letters.letters] == [
        (b"b", 11, reason),
        (b"b", 13, reason),
    ]
    assert watched.letters.letters[0].value == event("b", 1)
    assert watched.count("applied") == 2


def any_key(*events: bytes) -> tuple[dict[str, Any], bytes]:
    """Settings of a source whose keys are anything, and a record of several events."""
    return {"events": {"key": "any"}}, b"[" + b",".join(events) + b"]"


async def test_events_of_one_record_are_stored_by_user() -> None:
    settings, record = any_key(event("a", 1), event("b"), event("a", 2))
    watched = WatchedWriter(settings=settings)

    for _ in range(2):
        await watched.write(batch_of(("any", record), ("any", event("a", 3))))

    assert watched.store.counts() == {"a": 3, "b": 1}
    assert (watched.count("applied"), watched.count("replayed")) == (4, 4)
    assert watched.letters.letters == []


async def test_of_a_record_a_letter_holds_what_was_refused() -> None:
    settings, record = any_key(event("a"), b"7", event("b", action="hug"), b"8")
    watched = WatchedWriter(settings=settings)

    await watched.write(batch_of(("any", record)))

    assert watched.store.counts() == {"a": 1}
    refused = [(letter.reason, letter.value) for letter in watched.letters.letters]
    expected = [("wrong_shape", b"[7,8]"), ("unknown_action", b"[%b]" % event("b", action="hug"))]
    assert refused == expected
    assert "event 2 of 4" in watched.letters.letters[0].detail


async def test_of_a_record_users_who_cannot_be_stored_are_in_one_letter() -> None:
    settings, record = any_key(event("a"), event("b"), event("c"), event("b", 1))
    error = RecordTooLarge("too large")
    watched = WatchedWriter(PickyStore({"b": error, "c": error}), settings=settings)

    await watched.write(batch_of(("any", record)))

    assert watched.store.counts() == {"a": 1}
    (letter,) = watched.letters.letters
    assert letter.value == b"[%b,%b,%b]" % (event("b"), event("c"), event("b", 1))


async def test_what_is_no_behavior_is_counted_and_goes_nowhere() -> None:
    watched = WatchedWriter(settings={"events": {"ignore": {"action": ["search", "play"]}}})

    found = [event("a"), event("a", action="play"), event("a", action="search")]
    await watched.write(batch_of(*(("a", one) for one in found)))

    assert (watched.count("applied"), watched.count("ignored")) == (1, 2)
    assert watched.metrics.ignored.labels("default", "action")._value.get() == 2
    assert watched.letters.letters == []


class AwayDecoder(EventDecoder):
    """A decoder whose format has to ask somebody who is away, for a while."""

    away = 3

    def decode(self, *arguments: Any) -> Decoded:
        if self.away:
            self.away -= 1
            raise BrokerError("the registry does not answer")
        return super().decode(*arguments)


async def test_what_cannot_be_decoded_now_is_tried_again() -> None:
    watched = WatchedWriter(decoder=AwayDecoder(EventSettings()))
    told: list[str | None] = []
    watched.on_pause = lambda: told.append(watched.writer.progress.unread)

    await watched.write(batch_of(("a", event("a"))))

    assert watched.store.counts() == {"a": 1}
    assert watched.pauses == [0.05, 0.1, 0.2]
    assert told == ["the registry does not answer"] * 3
    assert watched.writer.progress.unread is None


async def test_a_letter_has_its_records_headers() -> None:
    watched = WatchedWriter()
    batch = batch_of(("a", b"oops"))
    batch.records[0].headers = [("ce_id", b"7")]

    await watched.write(batch)

    assert watched.letters.letters[0].headers == [("ce_id", b"7")]


async def test_a_store_whose_every_record_is_damaged_keeps_its_events_waiting() -> None:
    users = [f"u{n}" for n in range(20)]
    store = PickyStore(dict.fromkeys(users, StoreCorrupt("damaged")))
    watched = WatchedWriter(store)
    watched.on_pause = store.refused.clear

    await watched.write(batch_of(*((user, event(user)) for user in users)))

    assert watched.letters.letters == []
    assert watched.store.counts() == dict.fromkeys(users, 1)


async def test_the_store_knows_the_last_offset_of_a_batch() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(("a", event("a", 1)), ("b", event("b", 1)), ("a", event("a", 2))))

    assert watched.store.positions([SOURCE.key]) == [12]


async def test_events_that_became_no_behaviors_are_dealt_with_too() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(("a", event("a")), ("a", b"oops")))

    assert watched.store.positions([SOURCE.key]) == [11]


async def test_a_batch_of_rejects_alone_moves_the_position() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(("a", b"oops"), ("a", b"again")))

    assert watched.store.positions([SOURCE.key]) == [11]
    assert watched.store.counts() == {}
    assert len(watched.letters.letters) == 2


async def test_users_appended_one_by_one_move_the_position_to_the_end() -> None:
    watched = WatchedWriter(PickyStore({"b": RecordTooLarge("the record of 'b' is too large")}))

    await watched.write(batch_of(("a", event("a")), ("c", event("c")), ("b", event("b"))))

    assert watched.store.positions([SOURCE.key]) == [12]


async def test_the_position_does_not_move_before_every_user_is_dealt_with() -> None:
    seen: list[int | None] = []

    class Looking(PickyStore):
        def append(
            self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
        ) -> Appended:
            seen.extend(self.positions([SOURCE.key]))
            return super().append(groups, now_ms, digest=digest)

    watched = WatchedWriter(Looking({"b": RecordTooLarge("the record of 'b' is too large")}))

    await watched.write(batch_of(("a", event("a")), ("b", event("b")), ("c", event("c"))))

    assert len(seen) > 3
    assert set(seen) == {None}


async def test_batches_of_several_partitions_are_written_at_once() -> None:
    watched = WatchedWriter()
    other = Source(key=3, owner=4)
    first = batch_of(("a", event("a", 1)), ("b", event("b", 1)))
    second = batch_of(("c", event("c", 1)))

    await watched.write_group((first, SOURCE), (second, other))

    assert watched.store.counts() == {"a": 1, "b": 1, "c": 1}
    assert watched.store.positions([SOURCE.key, other.key]) == [11, 10]
    assert watched.metrics.batches._value.get() == 1


async def test_a_user_of_several_batches_is_appended_once_in_their_order() -> None:
    watched = WatchedWriter()
    first = batch_of(("a", event("a", 1)), ("b", event("b", 1)))
    second = batch_of(("a", event("a", 2)), ("a", b"oops"), begin=12)

    await watched.write_group((first, SOURCE), (second, SOURCE))

    assert len(watched.store.appends) == 1
    (sequence,) = watched.store.sequences(["a"])
    assert sequence is not None
    assert sequence.marks == {SOURCE.key: 12}
    assert watched.store.counts() == {"a": 2, "b": 1}
    assert watched.store.positions([SOURCE.key]) == [13]
    assert [letter.offset for letter in watched.letters.letters] == [13]


async def test_a_user_who_cannot_be_stored_is_refused_out_of_every_batch_of_a_group() -> None:
    watched = WatchedWriter(PickyStore({"b": RecordTooLarge("the record of 'b' is too large")}))
    first = batch_of(("a", event("a", 1)), ("b", event("b", 1)))
    second = batch_of(("b", event("b", 2)), ("c", event("c", 1)), begin=12)

    await watched.write_group((first, SOURCE), (second, SOURCE))

    assert watched.store.counts() == {"a": 1, "c": 1}
    assert [(x.key, x.offset) for x in watched.letters.letters] == [(b"b", 11), (b"b", 12)]
    assert [x.value for x in watched.letters.letters] == [event("b", 1), event("b", 2)]


async def test_a_position_that_cannot_be_written_holds_the_batch() -> None:
    watched = WatchedWriter(PickyStore({"b": RecordTooLarge("the record of 'b' is too large")}))
    watched.store.failure = lambda _s, appends: (
        None if appends or watched.pauses else StoreFull("no room")
    )

    await watched.write(batch_of(("a", event("a")), ("b", event("b"))))

    assert len(watched.pauses) == 1
    assert watched.store.counts() == {"a": 1}
    assert watched.store.positions([SOURCE.key]) == [11]


async def test_users_are_due_for_the_bundle_of_the_writer() -> None:
    watched = WatchedWriter(digest=DIGEST)

    await watched.write(batch_of(*(("a", event("a", n)) for n in range(SEGMENT))))

    assert [due.user for due in watched.store.due(SOURCE.owner, DIGEST, 10)] == ["a"]


async def test_users_are_due_for_another_bundle_once_it_is_given() -> None:
    watched = WatchedWriter(digest=DIGEST)
    await watched.writer.make_due_for(OTHER)

    await watched.write(batch_of(*(("a", event("a", n)) for n in range(SEGMENT))))

    assert watched.store.due(SOURCE.owner, DIGEST, 10) == []
    assert [due.user for due in watched.store.due(SOURCE.owner, OTHER, 10)] == ["a"]


async def test_a_writer_that_is_closed_has_nothing_under_way() -> None:
    watched = WatchedWriter(digest=DIGEST)
    watched.writer.close()

    await watched.writer.make_due_for(OTHER)


async def test_users_appended_one_by_one_are_due_too() -> None:
    picky = PickyStore({"b": RecordTooLarge("the record of 'b' is too large")})
    watched = WatchedWriter(picky, digest=DIGEST)

    await watched.write(
        batch_of(*(("a", event("a", n)) for n in range(SEGMENT)), ("b", event("b")))
    )

    assert [due.user for due in watched.store.due(SOURCE.owner, DIGEST, 10)] == ["a"]


async def test_without_a_bundle_nobody_new_is_due() -> None:
    watched = WatchedWriter()

    await watched.write(batch_of(*(("a", event("a", n)) for n in range(SEGMENT))))

    assert watched.store.due(SOURCE.owner, DIGEST, 10) == []


async def test_what_happened_before_a_user_was_deleted_is_counted() -> None:
    watched = WatchedWriter()
    watched.store.forget(["a"], NOW + 1)

    await watched.write(batch_of(*(("a", event("a", n)) for n in range(4))))

    assert watched.count("deleted") == 2  # at NOW and NOW + 1
    assert watched.count("applied") == 2
    assert watched.letters.letters == []


@pytest.mark.parametrize("expected", [True, False])
async def test_tombstones_are_counted_where_they_are_expected(expected: bool) -> None:
    watched = WatchedWriter(settings={"broker": {"forget_tombstones": expected}})

    await watched.write(batch_of(("a", event("a")), ("a", None), ("b", b"")))

    assert watched.count("applied") == 1
    assert watched.count("tombstone") == expected
    assert (
        [letter.key for letter in watched.letters.letters] == [b"b"] if expected else [b"a", b"b"]
    )


async def test_what_happened_before_the_cut_of_a_merged_history_is_counted() -> None:
    watched = WatchedWriter()
    history = History("a", SOURCE.owner, pack_behavior(1, NOW, 0, 0, 1))
    watched.store.merge([history], Claim(1, NOW + 2), NOW)

    await watched.write(batch_of(*(("a", event("a", n)) for n in range(4))))

    assert watched.count("covered") == 2  # at NOW and NOW + 1
    assert watched.count("applied") == 2


async def test_what_is_counted_of_users_appended_one_by_one_is_all_of_them() -> None:
    watched = WatchedWriter(PickyStore({"b": RecordTooLarge("the record of 'b' is too large")}))
    watched.store.forget(["c"], NOW)
    batch = batch_of(
        ("a", event("a", 1)), ("a", event("a", 1)), ("b", event("b")), ("c", event("c", 0))
    )

    await watched.write(batch)

    assert {outcome: watched.count(outcome) for outcome in OUTCOMES} == {
        "applied": 1,
        "duplicate": 1,
        "replayed": 0,
        "deleted": 1,
        "covered": 0,
        "rejected": 1,
    }
