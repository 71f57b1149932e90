"""The store on Aerospike: sequences, interest states and due users in one namespace.

A head is only ever replaced where its generation is still the one that was read; who comes second
reads again and applies again, which the marks make harmless.

A full tail is sealed in two steps, and its behaviors lie in both places in between. First the head
is written with a long tail, then the segments: they hold only what a committed head has held. The
head is trimmed by the first write of the user that finds segments held byte for byte, and written
at least `FLUSHED_MS` before; those that an append does not find, it writes again. Nobody looks for
them earlier: beside the head stands since when it holds a segment that is still to be found. So

- a crash in between leaves a head with a long tail, which every reader understands;
- a server that is killed loses what it had acknowledged, but not flushed, and each record by
  itself: perhaps segments, of which the head has all then, or the head as well, which then is an
  earlier one, whose tail reaches as far back as the segments that were there at its time;
- a worker that lags behind trims no head, for its generation has gone on, and writes a segment
  that is there already, byte for byte, or is refused by a later one in its place.

Who is due follows from counts, not from where behaviors lie, so nobody waits for the trimming.

However many users a call is about, it waits for the servers a few times: what does not depend on
each other is in flight together (`AerospikeClient.exchange`). An append waits for heads to be read
and to be written; where segments are looked for, or given a new TTL, in between as well; where
segments are sealed, for those at the end. Interests: for heads, for states (and segments that are
looked for), for heads. Heads that somebody else wrote meanwhile take two more, of those users
alone. The positions of sources follow behind (`infra.stores.aerospike.reached`). Reads wait for
heads, with the states where those are asked for, and once more for segments that they were not read
with the last time (`infra.stores.aerospike.spans`).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from aerospike_helpers.batch.records import BatchRecord, Remove, Write

from infra import records
from infra.errors import (
    RecordDamaged,
    SettingsError,
    StoreError,
    StoreUnavailable,
)
from infra.segments import LOST, decode_segments
from infra.segments import SEGMENT as SEGMENT_LENGTH
from infra.store import (
    AS_IT_COMES,
    OPEN_WAIT_S,
    Append,
    Appended,
    Claim,
    DueUser,
    Group,
    Held,
    History,
    Identity,
    InterestWrite,
    Merged,
    Profile,
    StoredSequence,
    StoreOptions,
    UserPage,
    Version,
    Written,
)
from infra.stores.aerospike.address import AerospikeAddress
from infra.stores.aerospike.client import (
    CONFLICT,
    MONOTONE,
    NO_WRITES,
    OK,
    PARTITIONS,
    PRESENT,
    RECORD_LIMIT,
    TIMEOUT_S,
    AerospikeClient,
    IndexMissing,
    Key,
    Reads,
    Stored,
    Writes,
)
from infra.stores.aerospike.fullness import Fullness, fullness
from infra.stores.aerospike.layout import (
    COUNT,
    DATA,
    DATA_BINS,
    DUE_BINS,
    EPOCH,
    HEAD,
    HEAD_BINS,
    IDENTITY,
    KEEP_TTL,
    LONG,
    POSITION,
    PROFILE_BINS,
    RENEWED,
    SECONDS,
    SEGMENT,
    SEGMENT_BINS,
    SEQUENCE,
    STATE,
    TTL,
    USER,
    covered_in,
    due_bins,
    due_span,
    due_users,
    first_write,
    head_write,
    interests_in,
    monotone_write,
    older_removal,
    sealed_ms,
    segment_write,
    touch,
    ttl_of,
    unchanged_write,
)
from infra.stores.aerospike.reached import Reached
from infra.stores.aerospike.room import Room
from infra.stores.aerospike.spans import Spans
from infra.stores.identity import (
    agree,
    decode_identity,
    encode_identity,
    new_identity,
    require_any_id,
)
from infra.stores.mending import Mending
from infra.stores.rounds import rounds
from infra.telemetry import get_logger

FLUSHED_MS: Final = 10_000
"""How old segments are before their head is trimmed. A server flushes after a second at most
(`flush-max-ms`); the rest is for its disk, and for clocks of workers that differ."""

INDEX_EVERY_S: Final = 10.0
"""Least time between two tries to have a missing index made."""

INDEX_WAIT_S: Final = 2.0
"""How long opening a store waits for its indexes: new ones are there within it. One over many users
takes longer, and events can be taken meanwhile."""

CONFLICTS: Final = 30
"""Times a head is read again because somebody else wrote it in between; more is unavailable."""

READ_ATTEMPTS: Final = 5
"""Times a user is read again because their segments moved on while they were read. What is missing
then is lost."""

_ANYBODY: Final = 100
"""Records that are looked at to find out whether there is any user."""

_DUE_PAGE: Final = 1024
"""Fewest due users that the index is asked for at once."""

log: Final = get_logger(__name__)

Change = Callable[[int, "bytes | None"], "bytes | None"]
"""(place in the call, head or None) -> the new head, or None to leave the record alone."""


class _Old(NamedTuple):
    """A head that is to be changed."""

    record: Stored | None
    """As it was read."""
    head: bytes | None
    """Trimmed; None: there is none, or it expired."""
    long: int
    """Since when its tail has held the oldest of its full segments, ms since epoch; 0: none."""


class AerospikeStore:
    """`infra.store.Store` on Aerospike, through the official client."""

    local = False

    def __init__(self, client: AerospikeClient, options: StoreOptions = AS_IT_COMES) -> None:
        """Use a connected client. `open` makes one and waits until the server is ready."""
        self._client = client
        self._where = f"the store at the Aerospike server at {client.address}"
        self.identity: Identity | None = None
        self._length = options.length
        self._ring = records.ring_size(options.length)
        self._room = Room.of(RECORD_LIMIT, self._ring)
        self._ttl_ms = int(options.ttl_s * 1000)
        self._ttl_s = round(options.ttl_s)
        self._states_kept = options.states
        # As many bundles as a head may name: those kept, and one on its way.
        self._slots = options.states + 1
        self._read_only = options.read_only
        self._clock = options.clock
        self._mending = Mending(options.damage)
        self._reached = Reached(self._put_reached)
        self._spans = Spans()
        self._indexed_at: dict[str, float] = {}
        """By name: when an index was last told to be made, monotonic seconds."""
        # The client's 0 is the namespace's default; what is kept must say so, always: an update
        # without a TTL takes the record's own away.
        self._ttl = ttl_of(options.ttl_s)
        # Segments and interests are written less often than their head, and must not go first.
        self._long_ttl = ttl_of(2 * options.ttl_s)

    @classmethod
    def open(
        cls,
        url: str,
        options: StoreOptions = AS_IT_COMES,
        *,
        wait_s: float = OPEN_WAIT_S,
        timeout_s: float = TIMEOUT_S,
    ) -> AerospikeStore:
        """Connect and wait until the server answers; for writing, also make what is not there yet:
        the store's identity, and the indexes of due users.

        Call it after any fork: the client's threads do not survive one.

        Args:
            url: see `AerospikeAddress`.
            options: as of every store. A TTL needs ``nsup-period`` above 0 in the namespace; by
                ``clock`` records expire besides the server's own.
            wait_s: how long to wait for a server that is starting.
            timeout_s: how long one call may take.

        Raises:
            SettingsError: the URL is malformed, names no namespace of the server, or carries
                credentials that the server refuses.
            StoreUnavailable: no server was ready within ``wait_s``; or, for reading, there is no
                store.
            StoreMismatch: it is another store than asked for (`infra.stores.identity`); nothing is
                made where none is.
        """
        address = AerospikeAddress.parse(url)
        deadline = time.monotonic() + wait_s
        while True:
            client = None
            try:
                client = AerospikeClient.connect(address, options, timeout_s)
                store = cls(client, options)
                store._prepare(options)
            except (StoreError, SettingsError) as error:
                failure = error
            else:
                return store
            if client is not None:
                client.close()
            if not isinstance(failure, StoreUnavailable) or time.monotonic() >= deadline:
                raise failure
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))

    def append(
        self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
    ) -> Appended:
        bundle = records.bundle_key(digest) if digest else 0
        done = Appended()
        for part in rounds(groups, self._room.slice):
            done += self._append(part, now_ms, bundle)
        # Only now, so that a crash in between leaves them behind what was applied, never ahead.
        self._reached.send(
            {group.source.key: group.reached for group in groups if group.reached is not None}
        )
        if not any(group.appends for group in groups):
            self._reached.settle()
        return done

    def merge(
        self,
        histories: Sequence[History],
        claim: Claim,
        now_ms: int,
        *,
        digest: bytes | None = None,
    ) -> Merged:
        bundle = records.bundle_key(digest) if digest else 0
        done: dict[int, Merged] = {}
        waiting = list(range(len(histories)))
        for attempt in range(CONFLICTS):
            if attempt > 1:
                time.sleep(random.uniform(0, 0.001 * min(attempt * attempt, 50)))
            last = _is_last(attempt % READ_ATTEMPTS)
            part = [(place, histories[place]) for place in waiting]
            waiting = self._merge(part, claim, now_ms, bundle, done, last=last)
            if not waiting:
                total = Merged()
                for merged in done.values():
                    total.add(merged)
                return total
        raise self._written_by_others(histories[waiting[0]].user)

    def positions(self, sources: Sequence[int]) -> list[int | None]:
        self._reached.settle()
        stored = self._client.get([self._source_key(source) for source in sources], [COUNT])
        return [None if record is None else record.bins[COUNT] for record in stored]

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        found: list[StoredSequence | None] = [None] * len(users)
        waiting = list(range(len(users)))
        for attempt in range(READ_ATTEMPTS):
            heads, segments = self._guessed([users[place] for place in waiting])
            read = [(place, head) for place, head in zip(waiting, heads, strict=True) if head]
            newest = self._newest(
                [(users[place], head, self._length) for place, head in read],
                _is_last(attempt),
                segments,
            )
            waiting = []
            for (place, head), behaviors in zip(read, newest, strict=True):
                if behaviors is None:
                    waiting.append(place)
                else:
                    self._spans.keep(users[place], head.segments(self._length))
                    found[place] = StoredSequence(
                        head.version, behaviors.behaviors, head.marks, behaviors.lost
                    )
            if not waiting:
                break
        return found

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        bundle = records.bundle_key(digest)
        found: list[Profile | None] = [None] * len(users)
        waiting = list(range(len(users)))
        for attempt in range(READ_ATTEMPTS):
            names = [users[place] for place in waiting]
            keys = [self._client.key(SEQUENCE, user) for user in names]
            keys += [self._state_key(user, bundle) for user in names]
            stored = self._client.get(keys, PROFILE_BINS)
            read: list[tuple[int, records.Head, Version | None, bytes | None]] = []
            again: list[int] = []
            for i, place in enumerate(waiting):
                head = self._decode(stored[i], users[place])
                if head is None:
                    continue
                version, payload = interests_in(stored[len(waiting) + i], head.epoch)
                if version and version > head.version and not _is_last(attempt):
                    # Written, with the events they cover, after the head was read.
                    again.append(place)
                    continue
                read.append((place, head, version, payload))
            newest = self._newest(
                [
                    (users[place], head, head.uncovered(version, self._length))
                    for place, head, version, _ in read
                ],
                _is_last(attempt),
            )
            for (place, head, version, payload), recent in zip(read, newest, strict=True):
                if recent is None:
                    again.append(place)
                else:
                    found[place] = Profile(
                        head.version, recent.behaviors, payload, version, recent.lost
                    )
            if not again:
                break
            waiting = again
        return found

    def interests(self, users: Sequence[str], digest: bytes) -> list[bytes | None]:
        bundle = records.bundle_key(digest)
        stored = self._client.get([self._state_key(user, bundle) for user in users], [DATA])
        return [None if record is None else bytes(record.bins[DATA]) for record in stored]

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        users = [write.user for write in writes]
        results: list[Written] = []
        states: list[BatchRecord] = []
        places: list[int] = []
        stored = self._read_heads(users)
        for place, (write, record) in enumerate(zip(writes, stored, strict=True)):
            head = self._live(record, write.user, None)
            counters = None
            if head is not None and not records.is_deleted(head):
                counters = self._counters(head, write.user)
            if counters is None:
                results.append(Written.GONE)
                continue
            # Until proven otherwise; so is what belongs to a sequence that began anew since.
            results.append(Written.STALE)
            if counters.epoch == write.version.epoch:
                places.append(place)
                states.append(
                    monotone_write(
                        self._state_key(write.user, records.bundle_key(write.digest)),
                        write.version.epoch,
                        write.version.count,
                        write.payload,
                        self._long_ttl,
                    )
                )
        names = [users[place] for place in places]
        olds, codes = self._trimmed(
            names,
            [stored[place] for place in places],
            now_ms,
            beside=Writes(states, MONOTONE, names),
        )
        made = [i for i, code in enumerate(codes) if code == OK]
        for i in made:
            results[places[i]] = Written.STORED
        self._cover([writes[places[i]] for i in made], [olds[i] for i in made], now_ms)
        return results

    def due(self, owner: int, digest: bytes, limit: int) -> list[DueUser]:
        # The index finds ranges of time, unordered. A page that did not hold all of the range is
        # a sample of it; its quarter of longest due users gives the next, narrower range.
        bundle = records.bundle_key(digest)
        page = max(_DUE_PAGE, 4 * limit)
        until = SECONDS
        while True:
            found, complete = self._due_until(owner, bundle, until, page)
            found.sort(key=lambda user: (user.since, user.user))
            if complete or not found:
                return found[:limit]
            narrower = found[len(found) // 4].since // 1000
            if narrower >= until:
                return found[:limit]
            until = narrower

    def mark_due(self, owner: int, digest: bytes, users: Sequence[str], now_ms: int) -> int:
        bundle = records.bundle_key(digest)
        states = self._client.get([self._state_key(user, bundle) for user in users], [EPOCH, COUNT])

        def mark(place: int, head: bytes | None) -> bytes | None:
            counters = None if head is None else self._counters(head, users[place])
            if head is None or counters is None:
                return None
            # A state that was written since is taken for lost, and once more made.
            counters.found(bundle, covered_in(states[place], counters.epoch))
            return records.set_due(
                head, counters, owner, bundle, now_ms, states=self._states_kept
            ).head

        return sum(one is not None for one in self._rewrite(users, mark, now_ms))

    def users(self, after: bytes, limit: int) -> UserPage:
        """In the order of the server's partitions, whole ones at a time: a cursor is the number of
        the partition with which the next page begins.
        """
        begin = int.from_bytes(after, "big")
        names: list[str] = []
        span = 1
        while begin < PARTITIONS and len(names) < limit:
            span = min(span, PARTITIONS - begin)
            rows = self._client.query(SEQUENCE, [USER, HEAD], partitions=(begin, span))[0]
            names += sorted(
                bins[USER].decode()
                for bins in rows
                if USER in bins and not records.is_deleted(bins.get(HEAD, b""))
            )
            begin += span
            # As many more as the rest of the page is likely to take.
            span = max(1, min(2 * span, (limit - len(names)) * begin // max(1, len(names))))
        return UserPage(names, begin.to_bytes(2, "big") if begin < PARTITIONS else None)

    def empty(self) -> bool:
        """As of every store. A few records mostly tell, and scorers ask each minute; a partition of
        the server may have hundreds of thousands.
        """
        rows, complete = self._client.query(SEQUENCE, [HEAD], page=_ANYBODY)
        if any(not records.is_deleted(bins.get(HEAD, b"")) for bins in rows):
            return False
        return complete or not self.users(b"", 1).users

    def held(self, users: Sequence[str]) -> list[Held | None]:
        found = []
        for user in users:
            (stored,) = self._client.get([self._client.key(SEQUENCE, user)], [HEAD])
            head = None if stored is None else stored.bins.get(HEAD)
            bundles = []
            with contextlib.suppress(RecordDamaged):
                if head is not None:
                    bundles = [c.bundle for c in records.read_counters(head, user).coverages]
            keys = [self._segment_key(user, place) for place in range(self._ring)]
            keys += [self._state_key(user, bundle) for bundle in bundles]
            sizes = [
                None if one is None else len(one.bins.get(DATA, b""))
                for one in self._client.get(keys, [DATA])
            ]
            segments = [size for size in sizes[: self._ring] if size is not None]
            states = {
                bundle: size
                for bundle, size in zip(bundles, sizes[self._ring :], strict=True)
                if size is not None
            }
            found.append(records.held(head, user, segments, states))
        return found

    def forget(self, users: Sequence[str], now_ms: int) -> int:
        known = self._heads(users)

        def mark(place: int, head: bytes | None) -> bytes | None:
            try:
                return records.delete(head, users[place], now_ms)
            except RecordDamaged as error:
                self._mending.head(error)
                return records.delete(None, users[place], now_ms)

        self._rewrite(users, mark, now_ms, events=True)
        # After the heads, which alone say what the user's records are; also those that an earlier
        # call left, which failed in between.
        gone: list[Key] = []
        whose: list[str] = []
        for user, head in zip(users, known, strict=True):
            keys = [self._segment_key(user, place) for place in range(self._ring)]
            keys += [self._state_key(user, c.bundle) for c in (head.coverages if head else ())]
            gone += keys
            whose += [user] * len(keys)
        self._client.put([Remove(key) for key in gone], PRESENT, whose)
        return sum(head is not None for head in known)

    def get_bookmark(self, name: str) -> bytes | None:
        stored = self._client.get([self._client.key(POSITION, name)], [DATA])[0]
        return None if stored is None else bytes(stored.bins[DATA])

    def put_bookmark(self, name: str, bookmark: bytes | None) -> None:
        key = self._client.key(POSITION, name)
        if bookmark is None:
            self._client.remove(key)
        else:
            self._client.put_one(key, {DATA: bookmark}, ttl_of(0))

    def sweep(self, now_ms: int, limit: int) -> int:  # noqa: ARG002  the protocol's signature
        """Remove nobody: the server removes expired records by itself."""
        return 0

    def ping(self) -> None:
        self._reached.settle()
        self._prove()
        if not self._read_only:
            self._ask_indexes()

    def room(self) -> Fullness | None:
        """Of the server that has the least."""
        found = [of for of in map(fullness, self._client.namespace().values()) if of is not None]
        return max(found, default=None)

    def cautions(self) -> Sequence[str]:
        """None: what a namespace may lose depends on its cluster as well (docs/operations.md)."""
        return ()

    def close(self) -> None:
        with contextlib.suppress(StoreError, SettingsError):  # positions may lag behind
            self._reached.settle()
        self._reached.close()
        self._client.close()

    # Opening

    def _prove(self) -> None:
        """Prove that the namespace is served, and takes a write unless it is only to be read; then
        also find out whether its servers are still the same.
        """
        if self._read_only:
            self.get_bookmark(IDENTITY)
            return
        key = self._client.key(POSITION, "ping")
        self._client.put_one(key, {DATA: b"ping"}, self._ttl)
        self._client.get_one(key)
        self._client.look_for_restarts()

    def _prepare(self, options: StoreOptions) -> None:
        """Prove that the namespace is served, and have identity and indexes as they should be."""
        # Before `_prove`, which writes: nothing is left where another store was asked for.
        record = self.get_bookmark(IDENTITY)
        found = None if record is None else decode_identity(record, self._where)
        if found is None:
            if self._read_only and not self._client.query(SEQUENCE, [USER], page=1)[0]:
                raise StoreUnavailable(
                    f"there is no store at the Aerospike server at {self._client.address};"
                    " correct store.url, or start a worker, which makes it"
                )
            require_any_id(options, self._where)
            if self._read_only:
                return  # written by an earlier version, which knew no identity
        self._prove()
        if found is None:
            self._client.put(
                [
                    first_write(
                        self._client.key(POSITION, IDENTITY),
                        encode_identity(new_identity(options)),
                        ttl_of(0),
                    )
                ],
                CONFLICT,
                [""],
            )
            record = self.get_bookmark(IDENTITY)
            found = decode_identity(record or b"", self._where)
        wanted = agree(found, options, self._where)
        self.identity = found if self._read_only else wanted
        self._ring = records.ring_size(found.length)
        if self._read_only:
            return
        if wanted != found:
            self.put_bookmark(IDENTITY, encode_identity(wanted))
        self._room = Room.of(self._client.record_limit(), self._ring)
        deadline = time.monotonic() + INDEX_WAIT_S
        while self._missing_index() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _missing_index(self) -> bool:
        """Whether an index of due users cannot be asked; it is had made."""
        try:
            self._ask_indexes()
        except IndexMissing:
            return True
        return False

    def _ask_indexes(self) -> None:
        """Prove that due users can be listed.

        Raises:
            IndexMissing: they cannot.
        """
        for name in due_bins(self._slots):
            self._due_in(name, 0, 0, 0, 1)

    # Appending

    def _append(self, part: Sequence[tuple[Group, Append]], now_ms: int, bundle: int) -> Appended:
        users = [new.user for _, new in part]
        outcomes: dict[int, records.Grown] = {}
        states = self._states_kept

        def grow(i: int, head: bytes | None) -> bytes | None:
            group, new = part[i]
            source = group.source
            try:
                grown = records.grow(
                    head, source.key, source.owner, new, now_ms, bundle, states, source.dead
                )
            except RecordDamaged as error:
                self._mending.head(error)
                grown = records.grow(None, source.key, source.owner, new, now_ms, bundle, states)
            outcomes[i] = grown
            return None if grown.head is None else self._cut_to_ring(grown.head)

        held: dict[str, Sequence[int]] = {}
        written = self._rewrite(users, grow, now_ms, events=True, held=held)
        changed = [
            (user, head) for user, head in zip(users, written, strict=True) if head is not None
        ]
        self._seal([one for one in changed if records.holds_segment(one[1])], held, now_ms)
        self._mend(changed)
        done = Appended()
        for outcome in outcomes.values():
            done += outcome.appended
        return done

    def _merge(
        self,
        part: Sequence[tuple[int, History]],
        claim: Claim,
        now_ms: int,
        bundle: int,
        done: dict[int, Merged],
        *,
        last: bool,
    ) -> list[int]:
        """Merge histories, each with its place in the call, under which ``done`` is told what
        became of it. Returns the places of those who were written by others meanwhile, or, unless
        ``last``, of whom segments were.

        A new head has all that is kept in its tail. Its segments are written afterwards, as with
        any, but where they would replace some of the old epoch: a server that is killed may lose
        the head, and the earlier one needs those. They are written with later events.
        """
        users = [history.user for _, history in part]
        stored = self._read_heads(users)
        heads: list[records.Head | None] = []
        for user, record in zip(users, stored, strict=True):
            old = self._live(record, user, now_ms)
            try:
                heads.append(None if old is None else records.decode_head(old, user))
            except RecordDamaged as error:
                self._mending.head(error)
                heads.append(None)
        found = {user: head for user, head in zip(users, heads, strict=True) if head is not None}
        newest = self._newest([(*one, self._length) for one in found.items()], last)
        behaviors = dict(zip(found, newest, strict=True))
        puts: list[BatchRecord] = []
        tried: list[tuple[int, str, bytes, Merged]] = []
        again: list[int] = []
        for (place, history), record, head in zip(part, stored, heads, strict=True):
            user, there = history.user, behaviors.get(history.user)
            if head and head.claim and head.claim.job == claim.job:
                done[place] = Merged(merged_before=1)
                continue
            if head and there is None:
                again.append(place)
                continue
            states = self._states_kept
            rows = there.behaviors if there else records.NOTHING
            joined = records.merge(head, rows, history, claim, now_ms, self._ring, bundle, states)
            if not joined.count:
                done[place] = joined.merged
                continue
            new = joined.head()
            # As of a user who begins anew, so that all that is kept is given the whole TTL.
            anew = _Old(record, None, 0)
            puts.append(self._head_write(user, new, anew, now_ms, events=True))
            tried.append((place, user, new, joined.merged))
        # An outage that they met must be heard of before anything newer is written.
        self._reached.settle()
        codes = self._client.put(puts, CONFLICT, [user for _, user, _, _ in tried])
        made: list[tuple[str, bytes]] = []
        for (place, user, head_bytes, merged), code in zip(tried, codes, strict=True):
            if code == OK:
                done[place] = merged
                made.append((user, head_bytes))
                self._mending.take(user)
            else:
                again.append(place)
        free = [one for one in made if one[0] not in found or not found[one[0]].has_segments]
        self._seal([one for one in free if records.holds_segment(one[1])], {}, now_ms)
        gone = [
            (user, older_removal(self._state_key(user, coverage.bundle), counters.epoch))
            for user, head_bytes in made
            for counters in (records.read_counters(head_bytes, user),)
            for coverage in counters.coverages
            if user in found
        ]
        self._client.put(
            [remove for _, remove in gone], MONOTONE | PRESENT, [user for user, _ in gone]
        )
        return again

    def _put_reached(self, reached: Mapping[int, int]) -> None:
        writes = [
            monotone_write(self._source_key(source), 0, offset, b"", ttl_of(0))
            for source, offset in reached.items()
        ]
        self._client.put(writes, MONOTONE, [""] * len(writes))

    def _cut_to_ring(self, head: bytes) -> bytes:
        """A head without the segments of its tail that are older than any that is kept."""
        beyond = records.tail_length(head) // SEGMENT_LENGTH - self._ring
        return records.trim(head, beyond) if beyond > 0 else head

    def _seal(
        self, long: Sequence[tuple[str, bytes]], held: Mapping[str, Sequence[int]], now_ms: int
    ) -> None:
        """Write the full segments in the tails of committed heads, but those that are held."""
        writes: list[BatchRecord] = []
        users: list[str] = []
        for user, head in long:
            epoch = records.read_counters(head, user).epoch
            for number, segment in records.full_segments(head, held.get(user, ())):
                writes.append(self._segment_write(user, epoch, number, segment, now_ms))
                users.append(user)
        self._client.put(writes, MONOTONE, users)

    def _trimmed(
        self,
        users: Sequence[str],
        stored: Sequence[Stored | None],
        now_ms: int,
        *,
        events: bool = False,
        held: dict[str, Sequence[int]] | None = None,
        beside: Writes = NO_WRITES,
    ) -> tuple[list[_Old], list[int]]:
        """Heads, of records that were just read, without the segments of their tails that were
        written long enough ago, and of those for which a record has no room. The numbers of
        segments that stay in a tail and are written go into ``held``, by user.

        With ``events``, what belongs to a head is given a new TTL where that is due. What else is
        written ``beside`` has its result codes returned. None of it takes more time.
        """
        held = {} if held is None else held
        olds: list[_Old] = []
        renewed: list[tuple[str, bytes]] = []
        looked: list[tuple[int, int, list[tuple[int, bytes]]]] = []
        keys: list[Key] = []
        for place, (user, record) in enumerate(zip(users, stored, strict=True)):
            head = self._live(record, user, now_ms if events else None)
            olds.append(_Old(record, head, 0))
            held.pop(user, None)  # of a head that was read before
            if record is None or head is None:
                continue
            if events and self._must_renew(record, now_ms):
                renewed.append((user, head))
            if not records.holds_segment(head):
                continue
            try:
                epoch = records.read_counters(head, user).epoch
            except RecordDamaged:  # told, and made anew, by who changes it
                continue
            numbers, long = records.full_numbers(head), record.bins.get(LONG, 0)
            if now_ms - long < FLUSHED_MS and len(numbers) <= self._room.tail:
                held[user] = numbers
                olds[place] = _Old(record, head, long)
                continue
            looked.append((place, epoch, records.full_segments(head)))
            keys += [self._segment_key(user, number) for number in numbers]
        if renewed:
            beside = self._renewals(renewed)
        found, codes = self._client.exchange(Reads(keys, SEGMENT_BINS), beside)
        read = iter(found)
        forced: list[BatchRecord] = []
        whose: list[str] = []
        for place, epoch, full in looked:
            user = users[place]
            since = [sealed_ms(next(read), epoch, *segment) for segment in full]
            held[user] = [
                number for (number, _), ms in zip(full, since, strict=True) if ms is not None
            ]
            flushed = (ms is not None and now_ms - ms >= FLUSHED_MS for ms in since)
            ready = sum(1 for _ in itertools.takewhile(bool, flushed))
            most = max(ready, len(full) - self._room.tail)
            for number, segment in full[ready:most]:
                if number not in held[user]:
                    forced.append(self._segment_write(user, epoch, number, segment, now_ms))
                    whose.append(user)
            record, head, _ = olds[place]
            assert head is not None
            long = min((now_ms if ms is None else ms for ms in since[most:]), default=0)
            olds[place] = _Old(record, records.trim(head, most), long)
        self._client.put(forced, MONOTONE, whose)
        return olds, codes

    def _cover(self, stored: Sequence[InterestWrite], olds: Sequence[_Old], now_ms: int) -> None:
        """Note in the heads, as they were read before, which states were stored. Only after they
        are, so that a crash in between leaves a user due for nothing, never clean without their
        interests.
        """
        dropped: dict[int, list[int]] = {}

        def cover(i: int, head: bytes | None) -> bytes | None:
            write = stored[i]
            counters = None if head is None else self._counters(head, write.user)
            if head is None or counters is None:
                return None
            bundle, count = records.bundle_key(write.digest), write.version.count
            if counters.epoch != write.version.epoch or counters.coverage(bundle).covered > count:
                return None
            changed = records.cover(head, counters, bundle, count, now_ms, states=self._states_kept)
            dropped[i] = changed.dropped
            return changed.head

        users = [write.user for write in stored]
        written = self._rewrite(users, cover, now_ms, olds=olds)
        gone = [(users[i], bundle) for i, bundles in dropped.items() for bundle in bundles]
        removes = [Remove(self._state_key(user, bundle)) for user, bundle in gone]
        self._client.put(removes, PRESENT, [user for user, _ in gone])
        self._mend([(user, head) for user, head in zip(users, written, strict=True) if head])

    def _rewrite(
        self,
        users: Sequence[str],
        change: Change,
        now_ms: int,
        *,
        events: bool = False,
        held: dict[str, Sequence[int]] | None = None,
        olds: Sequence[_Old] = (),
    ) -> list[bytes | None]:
        """Replace heads by what ``change`` makes of them, each atomically; None: left alone.

        With ``events`` heads are made that are not there, and users live on; any other change
        leaves them the time they have. Heads are trimmed before they are changed, which tells
        ``held`` (`_trimmed`); ``olds`` are those that were read and trimmed already.
        """
        done: list[bytes | None] = [None] * len(users)
        waiting = list(range(len(users)))
        for attempt in range(CONFLICTS):
            if attempt > 1:
                time.sleep(random.uniform(0, 0.001 * min(attempt * attempt, 50)))
            if attempt or not olds:
                some = [users[i] for i in waiting]
                stored = self._read_heads(some)
                olds, _ = self._trimmed(some, stored, now_ms, events=events, held=held)
            puts: list[BatchRecord] = []
            tried: list[tuple[int, bytes]] = []
            for i, old in zip(waiting, olds, strict=True):
                if not events and (old.head is None or records.is_deleted(old.head)):
                    continue
                new = change(i, old.head)
                if new is not None:
                    puts.append(self._head_write(users[i], new, old, now_ms, events=events))
                    tried.append((i, new))
            if events:
                # An outage that they met must be heard of before anything newer is written.
                self._reached.settle()
            codes = self._client.put(puts, CONFLICT, [users[i] for i, _ in tried])
            waiting = [i for (i, _), code in zip(tried, codes, strict=True) if code != OK]
            for (i, new), code in zip(tried, codes, strict=True):
                if code == OK:
                    done[i] = new
            if not waiting:
                return done
        raise self._written_by_others(users[waiting[0]])

    def _written_by_others(self, user: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"user {user!r} is written by others at the Aerospike server at"
            f" {self._client.address} each time it is tried; retry"
        )

    def _read_heads(self, users: Sequence[str]) -> list[Stored | None]:
        return self._client.get([self._client.key(SEQUENCE, user) for user in users], HEAD_BINS)

    def _must_renew(self, record: Stored, now_ms: int) -> bool:
        """Whether segments and states are to be given a new TTL: half of it is over, or another
        one was given last.
        """
        if record.bins.get(TTL) != self._ttl_s:
            return True
        return self._ttl_ms > 0 and now_ms - record.bins.get(RENEWED, 0) > self._ttl_ms // 2

    def _renewals(self, users: Sequence[tuple[str, bytes]]) -> Writes:
        """What gives the segments and states of users, named with their heads, a new TTL.

        They are written with twice the TTL, and again given that when the user has events after
        half a TTL: they outlive the head by then, whenever the last event was. It must be made
        before the head says so.
        """
        touches: list[BatchRecord] = []
        names: list[str] = []
        for user, old in users:
            try:
                head = records.decode_head(old, user)
            except RecordDamaged:  # told, and made anew, by who changes it
                continue
            keys = [
                self._segment_key(user, number) for number in head.sealed_segments(self._length)
            ]
            keys += [self._state_key(user, c.bundle) for c in head.coverages if c.covered]
            touches += [touch(key, self._long_ttl) for key in keys]
            names += [user] * len(keys)
        return Writes(touches, PRESENT, names)

    def _mend(self, written: Sequence[tuple[str, bytes]]) -> None:
        """Replace segments that were found damaged, of users who were just written."""
        places = [
            (user, records.read_counters(head, user).epoch, number)
            for user, head in written
            for number in self._mending.take(user)
        ]
        if not places:
            return
        keys = [self._segment_key(user, number) for user, _, number in places]
        writes: list[BatchRecord] = []
        for key, (_, epoch, number), record in zip(
            keys, places, self._client.get(keys, DATA_BINS), strict=True
        ):
            # Since it was read the ring may have moved on to a whole one.
            if (
                not _is_later(record, epoch, number)
                and decode_segments([_segment(record, epoch, number)]).damaged
            ):
                writes.append(unchanged_write(key, epoch, number, LOST, record, self._long_ttl))
        self._client.put(writes, CONFLICT, [""] * len(writes))

    def _head_write(self, user: str, head: bytes, old: _Old, now_ms: int, *, events: bool) -> Write:
        """The write of a head in the place of the one that was read."""
        record = old.record
        kept = {}
        if events and (record is None or old.head is None or self._must_renew(record, now_ms)):
            kept = {RENEWED: now_ms, TTL: self._ttl_s}
        elif record is not None:
            kept = {name: record.bins[name] for name in (RENEWED, TTL) if name in record.bins}
        if records.holds_segment(head):
            kept[LONG] = old.long or now_ms
        key = self._client.key(SEQUENCE, user)
        ttl = self._ttl if events else KEEP_TTL
        return head_write(key, user, head, record, kept, self._slots, ttl)

    # Reading

    def _heads(self, users: Sequence[str]) -> list[records.Head | None]:
        stored = self._client.get([self._client.key(SEQUENCE, user) for user in users], [HEAD])
        return [self._decode(record, user) for record, user in zip(stored, users, strict=True)]

    def _guessed(
        self, users: Sequence[str]
    ) -> tuple[list[records.Head | None], dict[tuple[str, int], Stored | None]]:
        """Heads, and with them the segments, by user and number, that they had the last time."""
        guesses = [(user, number) for user in users for number in self._spans.of(user)]
        keys = [self._client.key(SEQUENCE, user) for user in users]
        keys += [self._segment_key(user, number) for user, number in guesses]
        stored = self._client.get(keys, PROFILE_BINS)
        heads = [self._decode(record, user) for record, user in zip(stored, users, strict=False)]
        for user, head in zip(users, heads, strict=True):
            if head is None:
                self._spans.keep(user, range(0))
        return heads, dict(zip(guesses, stored[len(users) :], strict=True))

    def _decode(self, record: Stored | None, user: str) -> records.Head | None:
        """The head of a user who is there: not expired, not deleted, and not damaged."""
        head = self._live(record, user, None)
        if head is None or records.is_deleted(head):
            return None
        try:
            return records.decode_head(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _counters(self, head: bytes, user: str) -> records.Counters | None:
        try:
            return records.read_counters(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _live(self, record: Stored | None, user: str, now_ms: int | None) -> bytes | None:
        """The head of a record; None: there is none, or it expired and the server still has it.

        ``now_ms`` None is the store's clock.
        """
        if record is None:
            return None
        head = record.bins.get(HEAD)
        if not isinstance(head, bytes):
            head = b""  # as good as damaged
        now_ms = self._clock() if now_ms is None else now_ms
        try:
            return None if records.expired(head, user, self._ttl_ms, now_ms) else head
        except RecordDamaged:  # whoever decodes it tells
            return head

    def _newest(
        self,
        wanted: Sequence[tuple[str, records.Head, int]],
        last: bool,
        early: Mapping[tuple[str, int], Stored | None] | None = None,
    ) -> list[records.Newest | None]:
        """The newest behaviors of each (user, head, how many); None: its segments do not fit its
        head. They may have moved on; with ``last``, those that do not fit are lost.

        Segments that were read ``early``, by user and number, are read again where they do not fit.
        """
        early = early or {}
        parts: list[list[bytes | None]] = []
        keys: list[Key] = []
        places: list[tuple[int, int]] = []
        for place, (user, head, length) in enumerate(wanted):
            parts.append([])
            for number in head.segments(length):
                part = _segment(early.get((user, number)), head.epoch, number)
                if part is None:
                    places.append((place, len(parts[place])))
                    keys.append(self._segment_key(user, number))
                parts[place].append(part)
        for (place, at), record in zip(places, self._client.get(keys, DATA_BINS), strict=True):
            _, head, length = wanted[place]
            parts[place][at] = _segment(record, head.epoch, head.segments(length)[at])
        newest: list[records.Newest | None] = []
        for (user, head, length), of in zip(wanted, parts, strict=True):
            if None in of and not last:
                newest.append(None)
                continue
            found = head.newest(of, length)
            self._mending.segments(user, found.damaged)
            newest.append(found)
        return newest

    def _due_until(
        self, owner: int, bundle: int, until_s: int, page: int
    ) -> tuple[list[DueUser], bool]:
        """Up to about ``page`` of an owner's users due since a second up to ``until_s``, in no
        order, and whether those are all.
        """
        found: dict[str, DueUser] = {}
        complete = True
        for name in due_bins(self._slots):
            some, all_of_them = self._due_in(name, owner, bundle, until_s, page)
            found |= {one.user: one for one in some}
            complete &= all_of_them
        return list(found.values()), complete

    def _due_in(
        self, name: str, owner: int, bundle: int, until_s: int, page: int
    ) -> tuple[list[DueUser], bool]:
        span = due_span(name, owner, bundle, until_s)
        try:
            rows, complete = self._client.query(SEQUENCE, DUE_BINS, span=span, page=page)
        except IndexMissing:
            self._have_indexed(name)
            raise
        return due_users(rows, owner, bundle), complete

    def _have_indexed(self, name: str) -> None:
        """Have the index of a bin made again, which does no harm where it is being built."""
        now = time.monotonic()
        if self._read_only or now - self._indexed_at.get(name, -INDEX_EVERY_S) < INDEX_EVERY_S:
            return
        self._indexed_at[name] = now
        log.info("index of due users missing or being built, having it made", bin=name)
        self._client.make_index(SEQUENCE, name)

    def _segment_write(
        self, user: str, epoch: int, number: int, segment: bytes, now_ms: int
    ) -> BatchRecord:
        key = self._segment_key(user, number)
        return segment_write(key, epoch, number, segment, now_ms, self._long_ttl)

    def _segment_key(self, user: str, number: int) -> Key:
        return self._client.key(SEGMENT, f"{user}:{number % self._ring}")

    def _state_key(self, user: str, bundle: int) -> Key:
        return self._client.key(STATE, f"{user}:{bundle:016x}")

    def _source_key(self, source: int) -> Key:
        return self._client.key(POSITION, f"source:{source:016x}")


def _is_last(attempt: int) -> bool:
    return attempt == READ_ATTEMPTS - 1


def _segment(record: Stored | None, epoch: int, number: int) -> bytes | None:
    """The segment in a record, if it is that one."""
    if record is None or (record.bins.get(EPOCH), record.bins.get(COUNT)) != (epoch, number):
        return None
    data = record.bins.get(DATA)
    return data if isinstance(data, bytes) else b""


def _is_later(record: Stored | None, epoch: int, number: int) -> bool:
    """Whether a record holds a later segment than that one."""
    if record is None:
        return False
    held: tuple[int, int] = (record.bins.get(EPOCH, 0), record.bins.get(COUNT, 0))
    return held > (epoch, number)
