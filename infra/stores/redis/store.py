"""The store on Redis: sequences, interest states and due users, one hash a user.

A user is only ever changed where the head is still the one that was read (`layout.CHANGE`); who
comes second reads again and applies again, which the marks make harmless. With the head go the
segments that it seals, the states that it counts and the lists of due users that it is in, all in
one script, so that there is nothing in between for a reader to find, or a crash to leave.

However many users a call is about, it waits for the servers a few times: an append for heads, for
what it writes, and for how far its sources were applied; interests for heads and for what is
written; a profile once, and once more where it is to have segments. Users whose heads somebody else
changed meanwhile take two more waits, alone.

What the server loses of what it acknowledged is for its configuration to say (`durability`).
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from infra import records
from infra.errors import RecordDamaged, RecordNewer, SettingsError, StoreError, StoreUnavailable
from infra.segments import LOST, SEGMENT
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
from infra.stores.identity import (
    agree,
    decode_identity,
    encode_identity,
    new_identity,
    require_any_id,
)
from infra.stores.mending import Mending
from infra.stores.redis.address import RedisAddress
from infra.stores.redis.client import TIMEOUT_S, RedisClient
from infra.stores.redis.durability import cautions
from infra.stores.redis.fullness import Fullness, fullness
from infra.stores.redis.layout import (
    BUCKETS,
    HEAD,
    RAISE,
    Change,
    Command,
    Keys,
    bucket_of,
    change_command,
    segment_field,
    state_field,
)
from infra.stores.rounds import rounds
from infra.telemetry import get_logger

LATER_MS: Final = 60_000
"""By so much a user outlives their TTL in the server: clocks differ, and ours decides."""

CONFLICTS: Final = 30
"""Times a user is read again because somebody else changed them in between; more is unavailable."""

READ_ATTEMPTS: Final = 5
"""Times a user is read again because their segments moved on while they were read."""

LISTED_TOGETHER: Final = 16
"""Buckets whose users are asked for in one round trip: those of a small store lie in all of them,
and of a large one a page is full after the first."""

REWRITE_S: Final = 600.0
"""How long servers may take to write their files anew."""

IDENTITY: Final = "identity"
"""The bookmark that has the store's identity."""

log: Final = get_logger(__name__)

Read = Callable[[Sequence[int]], "Sequence[bytes | None]"]
"""places in the call -> their heads"""
Decide = Callable[[int, "bytes | None"], "Change | None"]
"""(place in the call, head or None) -> what becomes of the user; None: nothing."""


class RedisStore:
    """`infra.store.Store` on Redis, through the official client."""

    local = False

    def __init__(self, client: RedisClient, options: StoreOptions = AS_IT_COMES) -> None:
        """Use a client. `open` makes one and waits until the server is ready."""
        self._client = client
        self._keys = Keys(client.address.prefix)
        self._where = f"the store at the Redis at {client.address}"
        self.identity: Identity | None = None
        self._length = options.length
        self._ring = records.ring_size(options.length)
        self._ttl_ms = int(options.ttl_s * 1000)
        self._states_kept = options.states
        self._read_only = options.read_only
        self._clock = options.clock
        self._mending = Mending(options.damage)
        self._swept = b""
        """The last user at whom `sweep` looked; b"": it begins anew."""

    @classmethod
    def open(
        cls,
        url: str,
        options: StoreOptions = AS_IT_COMES,
        *,
        wait_s: float = OPEN_WAIT_S,
        timeout_s: float = TIMEOUT_S,
    ) -> RedisStore:
        """Connect and wait until the server answers; for writing, also make the store's identity
        where there is none, and tell what of the server's configuration may lose events.

        Args:
            url: see `RedisAddress`.
            options: as of every store.
            wait_s: how long to wait for a server that is starting.
            timeout_s: how long one call may take.

        Raises:
            SettingsError: the URL is malformed, or its credentials or database are refused.
            StoreUnavailable: no server was ready within ``wait_s``; or, for reading, there is no
                store.
            StoreMismatch: it is another store than asked for (`infra.stores.identity`).
        """
        address = RedisAddress.parse(url)
        deadline = time.monotonic() + wait_s
        while True:
            client = None
            try:
                client = RedisClient(address, options, timeout_s)
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
        for part in rounds(groups, records.MOST_AT_ONCE):
            done += self._append(part, now_ms, bundle)
        # Only now, so that a crash in between leaves them behind what was applied, never ahead.
        reached = {group.source.key: group.reached for group in groups if group.reached is not None}
        self._client.run(
            [
                ("EVAL", RAISE, 1, self._keys.source(source), offset)
                for source, offset in reached.items()
            ],
            writing=True,
        )
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
        fields = [HEAD, *map(segment_field, range(self._ring))]
        rings: dict[int, Sequence[bytes | None]] = {}
        done: dict[int, Merged] = {}

        def read(places: Sequence[int]) -> list[bytes | None]:
            users = [histories[place].user for place in places]
            found = self._client.run([("HMGET", self._keys.user(user), *fields) for user in users])
            rings.update((place, ring) for place, (_, *ring) in zip(places, found, strict=True))
            return [head for head, *_ in found]

        def decide(place: int, old: bytes | None) -> Change | None:
            history = histories[place]
            user = history.user
            numbers = None if old is None else self._numbers(user, old)
            head, stored = None, records.NOTHING
            if old and numbers and not self._has_expired(user, old, now_ms):
                head = records.decode_head(old, user)
                ring = [rings[place][n % self._ring] for n in head.segments(self._length)]
                stored = self._newest(user, head, ring, self._length).behaviors
            if head and head.claim and head.claim.job == claim.job:
                done[place] = Merged(merged_before=1)
                return None
            states = self._states_kept
            joined = records.merge(head, stored, history, claim, now_ms, self._ring, bundle, states)
            done[place] = joined.merged
            if not joined.count:
                return None
            self._mending.take(user)
            trimmed, full = joined.sealed()
            segments = {segment_field(number % self._ring): data for number, data in full}
            return Change(
                set={HEAD: trimmed, **segments},
                clear=True,
                listed=True,
                ttl_ms=self._server_ttl_ms,
                due=joined.due,
                undue=numbers.due - joined.due if numbers else (),
            )

        self._change([history.user for history in histories], decide, read)
        total = Merged()
        for merged in done.values():
            total.add(merged)
        return total

    def positions(self, sources: Sequence[int]) -> list[int | None]:
        found = self._client.run([("GET", self._keys.source(source)) for source in sources])
        return [None if offset is None else int(offset) for offset in found]

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        fields = [HEAD, *map(segment_field, range(self._ring))]
        read = self._client.run([("HMGET", self._keys.user(user), *fields) for user in users])
        found: list[StoredSequence | None] = []
        for user, (stored, *ring) in zip(users, read, strict=True):
            head = self._decoded(user, stored)
            if head is None:
                found.append(None)
                continue
            segments = [ring[number % self._ring] for number in head.segments(self._length)]
            newest = self._newest(user, head, segments, self._length)
            found.append(StoredSequence(head.version, newest.behaviors, head.marks, newest.lost))
        return found

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        bundle = records.bundle_key(digest)
        found: list[Profile | None] = [None] * len(users)
        # Of whom which segments are to be read with the head; at first, none.
        waiting: dict[int, range] = dict.fromkeys(range(len(users)), range(0))
        for attempt in range(READ_ATTEMPTS):
            read = self._read([(users[place], span) for place, span in waiting.items()], bundle)
            again: dict[int, range] = {}
            for (place, span), (head, state, segments) in zip(waiting.items(), read, strict=True):
                if head is None:
                    continue
                version = None
                if state is not None:
                    version = Version(head.epoch, head.coverage(bundle).covered)
                length = head.uncovered(version, self._length)
                wanted = head.segments(length)
                fits = wanted == span or not wanted
                if not fits and attempt < READ_ATTEMPTS - 1:
                    again[place] = wanted
                    continue
                read_with_it = segments if fits else [None] * len(wanted)
                newest = self._newest(users[place], head, read_with_it, length)
                found[place] = Profile(head.version, newest.behaviors, state, version, newest.lost)
            if not again:
                break
            waiting = again
        return found

    def interests(self, users: Sequence[str], digest: bytes) -> list[bytes | None]:
        field = state_field(records.bundle_key(digest))
        return self._client.run([("HGET", self._keys.user(user), field) for user in users])

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        results = [Written.GONE] * len(writes)

        def decide(place: int, head: bytes | None) -> Change | None:
            write = writes[place]
            bundle, covered = records.bundle_key(write.digest), write.version.count
            counters = self._counters(write.user, head)
            if head is None or counters is None:
                results[place] = Written.GONE
                return None
            older = counters.coverage(bundle).covered > covered
            if counters.epoch != write.version.epoch or older:
                results[place] = Written.STALE
                return None
            results[place] = Written.STORED
            changed = records.cover(
                head, counters, bundle, covered, now_ms, states=self._states_kept
            )
            assert changed.head is not None
            return Change(
                set={
                    HEAD: changed.head,
                    state_field(bundle): write.payload,
                    **self._mended(write.user, counters.count),
                },
                remove=[state_field(dropped) for dropped in changed.dropped],
                due=changed.due,
                undue=changed.undue,
            )

        self._change([write.user for write in writes], decide)
        return results

    def due(self, owner: int, digest: bytes, limit: int) -> list[DueUser]:
        bundle = records.bundle_key(digest)
        while True:
            longest = self._longest_due(owner, bundle, limit)
            users = [user for _, user in longest]
            heads = self._heads(users)
            found: list[DueUser] = []
            stray: dict[str, bytes | None] = {}
            for (since, user), head in zip(longest, heads, strict=True):
                due = self._due_user(user, head, bundle, owner, since)
                if due is None:
                    stray[user] = head
                else:
                    found.append(due)
            if not stray or self._read_only:
                return found
            # Of users who expired, or whose head was damaged: nobody else takes them off the list.
            off = Change(undue=[records.DueKey(bundle, owner, 0)])
            self._client.run(
                [change_command(self._keys, [(user, head, off)]) for user, head in stray.items()],
                writing=True,
            )

    def mark_due(self, owner: int, digest: bytes, users: Sequence[str], now_ms: int) -> int:
        bundle = records.bundle_key(digest)
        field = state_field(bundle)
        # A state that is written after this is taken for lost, and once more made.
        there = self._client.run([("HEXISTS", self._keys.user(user), field) for user in users])

        def decide(place: int, head: bytes | None) -> Change | None:
            counters = self._counters(users[place], head)
            if head is None or counters is None:
                return None
            if not there[place]:
                counters.found(bundle, 0)
            changed = records.set_due(
                head, counters, owner, bundle, now_ms, states=self._states_kept
            )
            if changed.head is None:
                return None
            return Change(set={HEAD: changed.head}, due=changed.due, undue=changed.undue)

        return sum(self._change(users, decide))

    def users(self, after: bytes, limit: int) -> UserPage:
        """By bucket, and by name there: a cursor is the bucket's number and the last name."""
        bucket, last = (after[0], after[1:]) if after else (0, b"")
        found: list[bytes] = []
        while bucket < BUCKETS:
            span = range(bucket, min(BUCKETS, bucket + LISTED_TOGETHER))
            pages = self._client.run(
                [
                    (
                        "ZRANGEBYLEX",
                        self._keys.users(number),
                        b"(" + last if last and number == bucket else "-",
                        *("+", "LIMIT", 0, limit + 1),
                    )
                    for number in span
                ]
            )
            for number, page in zip(span, pages, strict=True):
                room = limit - len(found)
                found += page[:room]
                if len(page) > room:
                    ended = page[room - 1] if room else (last if number == bucket else b"")
                    cursor = bytes([number]) + ended
                    return UserPage([name.decode() for name in found], cursor)
            bucket, last = span.stop, b""
        return UserPage([name.decode() for name in found], None)

    def empty(self) -> bool:
        counts = self._client.run([("ZCARD", self._keys.users(b)) for b in range(BUCKETS)])
        return not any(counts) or not self.users(b"", 1).users

    def held(self, users: Sequence[str]) -> list[Held | None]:
        read = self._client.run([("HGETALL", self._keys.user(user)) for user in users])
        found = []
        for user, fields in zip(users, read, strict=True):
            segments = [len(value) for name, value in fields.items() if name[:1] == b"s"]
            states = {int(n[1:], 16): len(v) for n, v in fields.items() if n[:1] == b"i"}
            found.append(records.held(fields.get(HEAD), user, segments, states))
        return found

    def forget(self, users: Sequence[str], now_ms: int) -> int:
        known: set[str] = set()

        def decide(place: int, head: bytes | None) -> Change:
            user = users[place]
            counters = self._counters(user, head)
            if counters is not None:
                known.add(user)
            try:
                if head is not None and records.expired(head, user, self._ttl_ms, now_ms):
                    head = None
                mark = records.delete(head, user, now_ms)
            except RecordDamaged as error:
                self._mending.head(error)
                mark = records.delete(None, user, now_ms)
            return Change(
                set={HEAD: mark},
                clear=True,
                listed=False,
                ttl_ms=self._server_ttl_ms,
                undue=counters.due if counters else (),
            )

        self._change(list(dict.fromkeys(users)), decide)
        return len(known)

    def get_bookmark(self, name: str) -> bytes | None:
        found: bytes | None
        (found,) = self._client.run([("GET", self._keys.bookmark(name))])
        return found

    def put_bookmark(self, name: str, bookmark: bytes | None) -> None:
        key = self._keys.bookmark(name)
        command: Command = ("DEL", key) if bookmark is None else ("SET", key, bookmark)
        self._client.run([command], writing=True)

    def sweep(self, now_ms: int, limit: int) -> int:
        """Take users off the listing whom the server has removed, and remove those who expired by
        our clock; looks at ``limit`` of them.
        """
        page = self.users(self._swept, limit)
        self._swept = page.after or b""

        def decide(place: int, head: bytes | None) -> Change | None:
            if head is None:
                return Change(listed=False)
            if not self._has_expired(page.users[place], head, now_ms):
                return None
            counters = self._numbers(page.users[place], head)
            return Change(clear=True, listed=False, undue=counters.due if counters else ())

        return sum(self._change(page.users, decide))

    def ping(self) -> None:
        if self._read_only:
            self.get_bookmark(IDENTITY)
            return
        self.put_bookmark("ping", b"ping")
        self._client.look_for_restarts()

    def room(self) -> Fullness | None:
        """Of the server that has the least."""
        found = [one for one in map(fullness, self._client.servers("memory")) if one is not None]
        return max(found, default=None)

    def cautions(self) -> list[str]:
        return list(cautions(self._client.configured))

    def rewrite_files(self, *, wait_s: float = REWRITE_S) -> None:
        """Have each primary write its AOF and RDB files anew, those that it has, so that they hold
        nothing of what was deleted. Replicas' files are theirs.

        Raises:
            StoreUnavailable: one has not within ``wait_s``, or may not be asked to.
        """
        self._client.rewrite_files(wait_s)

    def close(self) -> None:
        self._client.close()

    # Opening

    def _prepare(self, options: StoreOptions) -> None:
        """Have the identity as it should be."""
        record = self.get_bookmark(IDENTITY)
        if record is None:
            if self._read_only:
                raise StoreUnavailable(
                    f"there is no store at the Redis at {self._client.address}; correct store.url,"
                    " or start a worker, which makes it"
                )
            require_any_id(options, self._where)
            made = encode_identity(new_identity(options))
            key = self._keys.bookmark(IDENTITY)
            self._client.run([("SET", key, made, "NX")], writing=True)  # the first of several
            record = self.get_bookmark(IDENTITY)
        found = decode_identity(record or b"", self._where)
        wanted = agree(found, options, self._where)
        self.identity = found if self._read_only else wanted
        self._ring = records.ring_size(found.length)
        if self._read_only:
            return
        if wanted != found:
            self.put_bookmark(IDENTITY, encode_identity(wanted))
        self._client.look_for_restarts()
        for caution in self.cautions():
            log.warning("store may lose what it acknowledged", why=caution)

    # Changing

    @property
    def _server_ttl_ms(self) -> int:
        return self._ttl_ms + LATER_MS if self._ttl_ms else 0

    def _append(self, part: Sequence[tuple[Group, Append]], now_ms: int, bundle: int) -> Appended:
        outcomes: dict[int, records.Grown] = {}

        def grow(place: int, head: bytes | None) -> Change | None:
            group, new = part[place]
            before = head
            if before is not None and self._has_expired(new.user, before, now_ms):
                before = None
            try:
                grown = self._grown(before, group, new, now_ms, bundle)
            except RecordDamaged as error:
                self._mending.head(error)
                before = None
                grown = self._grown(None, group, new, now_ms, bundle)
            outcomes[place] = grown
            if grown.head is None:
                return None
            anew = before is None and head is not None
            old = self._numbers(new.user, head) if anew and head is not None else None
            count = records.read_counters(grown.head, new.user).count
            trimmed, full = records.seal(grown.head, self._ring)
            segments = {segment_field(number % self._ring): data for number, data in full}
            return Change(
                set={HEAD: trimmed, **self._mended(new.user, count), **segments},
                clear=anew,
                listed=True if before is None or records.is_deleted(before) else None,
                ttl_ms=self._server_ttl_ms,
                due=grown.due,
                undue=grown.undue | (old.due if old else set()),
            )

        self._change([new.user for _, new in part], grow)
        done = Appended()
        for outcome in outcomes.values():
            done += outcome.appended
        return done

    def _grown(
        self, head: bytes | None, group: Group, new: Append, now_ms: int, bundle: int
    ) -> records.Grown:
        source = group.source
        states, dead = self._states_kept, source.dead
        return records.grow(head, source.key, source.owner, new, now_ms, bundle, states, dead)

    def _change(self, users: Sequence[str], decide: Decide, read: Read | None = None) -> list[bool]:
        """Change users, none of whom is there twice, whatever others do meanwhile; whether each
        was. Who needs more than their heads gives how they are read.
        """
        changed = [False] * len(users)
        waiting = list(range(len(users)))
        for attempt in range(CONFLICTS):
            if attempt:
                time.sleep(random.uniform(0, 0.002 * attempt))
            if read is None:
                heads = self._heads([users[place] for place in waiting])
            else:
                heads = list(read(waiting))
            together: defaultdict[int, list[int]] = defaultdict(list)
            changes: dict[int, tuple[str, bytes | None, Change]] = {}
            for place, head in zip(waiting, heads, strict=True):
                change = decide(place, head)
                if change is not None:
                    changes[place] = users[place], head, change
                    together[bucket_of(users[place])].append(place)
            commands = [
                change_command(self._keys, [changes[place] for place in places])
                for places in together.values()
            ]
            answers = self._client.run(commands, writing=True)
            waiting = []
            for places, done in zip(together.values(), answers, strict=True):
                for place, one in zip(places, done, strict=True):
                    changed[place] = bool(one)
                    if not one:
                        waiting.append(place)
            if not waiting:
                return changed
        raise StoreUnavailable(
            f"user {users[waiting[0]]!r} was changed by others {CONFLICTS} times in a row; retry"
        )

    def _mended(self, user: str, count: int) -> dict[bytes, bytes]:
        """Fields that say of the user's damaged segments, if any, that they are lost: of those of
        which the ring still has the place.
        """
        kept = count // SEGMENT - self._ring
        return {
            segment_field(number % self._ring): LOST
            for number in self._mending.take(user)
            if number >= kept
        }

    # Reading

    def _heads(self, users: Sequence[str]) -> list[bytes | None]:
        return self._client.run([("HGET", self._keys.user(user), HEAD) for user in users])

    def _read(
        self, wanted: Sequence[tuple[str, range]], bundle: int
    ) -> list[tuple[records.Head | None, bytes | None, list[bytes | None]]]:
        """Users' heads, a bundle's states, and so many segments, of each as of one moment."""
        read = self._client.run(
            [
                (
                    *("HMGET", self._keys.user(user), HEAD, state_field(bundle)),
                    *(segment_field(number % self._ring) for number in span),
                )
                for user, span in wanted
            ]
        )
        return [
            (self._decoded(user, head), state, segments)
            for (user, _), (head, state, *segments) in zip(wanted, read, strict=True)
        ]

    def _newest(
        self, user: str, head: records.Head, segments: Sequence[bytes | None], length: int
    ) -> records.Newest:
        newest = head.newest(segments, length)
        self._mending.segments(user, newest.damaged)
        return newest

    def _longest_due(self, owner: int, bundle: int, limit: int) -> list[tuple[int, str]]:
        """(since, user) of up to ``limit`` who are listed as due, the longest first."""
        keys = [self._keys.due(bucket, owner, bundle) for bucket in range(BUCKETS)]
        # A fair share of each bucket, and some; of those that had more, as much as matters.
        some = min(limit, 2 * limit // BUCKETS + 8)
        listed = self._due_in(keys, "+inf", some)
        found = sorted(one for page in listed for one in page)[:limit]
        more = [key for key, page in zip(keys, listed, strict=True) if len(page) == some]
        if some < limit and more:
            until = str(found[-1][0]) if len(found) == limit else "+inf"
            rest = [page for page in listed if len(page) < some]
            listed = rest + self._due_in(more, until, limit)
            found = sorted(one for page in listed for one in page)[:limit]
        return found

    def _due_in(self, keys: Sequence[bytes], until: str, limit: int) -> list[list[tuple[int, str]]]:
        pages = self._client.run(
            [("ZRANGEBYSCORE", key, "-inf", until, "WITHSCORES", "LIMIT", 0, limit) for key in keys]
        )
        return [
            [(int(since), name.decode()) for name, since in zip(page[::2], page[1::2], strict=True)]
            for page in pages
        ]

    def _counters(self, user: str, head: bytes | None) -> records.Counters | None:
        """The numbers of a user who is there: not expired, not deleted, and not damaged."""
        if head is None or records.is_deleted(head):
            return None
        if self._has_expired(user, head, self._clock()):
            return None
        return self._numbers(user, head)

    def _due_user(
        self, user: str, head: bytes | None, bundle: int, owner: int, since: int
    ) -> DueUser | None:
        """A user who is listed as due; None: their head says otherwise. Of a head of a later format
        the listing is taken at its word: whoever reads the user tells.
        """
        try:
            counters = self._counters(user, head)
        except RecordNewer:
            return DueUser(user, since, 0)
        if counters is None or not counters.is_due(bundle, owner, since):
            return None
        return counters.due_user(user, bundle)

    def _numbers(self, user: str, head: bytes) -> records.Counters | None:
        try:
            return records.read_counters(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _decoded(self, user: str, head: bytes | None) -> records.Head | None:
        """The head of a user who is there, in full."""
        if head is None or records.is_deleted(head):
            return None
        try:
            if records.expired(head, user, self._ttl_ms, self._clock()):
                return None
            return records.decode_head(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _has_expired(self, user: str, head: bytes, now_ms: int) -> bool:
        with contextlib.suppress(RecordDamaged):  # whoever decodes it tells
            return records.expired(head, user, self._ttl_ms, now_ms)
        return False
