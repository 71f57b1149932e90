"""The layout of a user in Aerospike: the sets, their bins, and the writes that keep them right.

Four sets. ``sequence`` (key: user) holds the head, and beside it the few numbers by which due
users are found, so that applying events and marking their user due is one write of one record.
``segment`` (key: user and place in the ring) holds sealed segments, ``state`` (key: user and
bundle) the interest states, ``position`` the bookmarks, the positions of sources and the identity.

A user may be due for several bundles, and an index knows one number a record: so there are as many
bins, each with its index, as a user may be due for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import aerospike
import xxhash
from aerospike import predicates
from aerospike_helpers import expressions
from aerospike_helpers.batch.records import Remove, Write
from aerospike_helpers.operations import operations

from infra import records
from infra.store import DueUser, Version
from infra.stores.aerospike.client import Key, Stored

MAX_TTL_S: Final = 10 * 365 * 24 * 3600
"""The longest TTL that a server takes: ten years."""

SEQUENCE: Final = "sequence"
SEGMENT: Final = "segment"
STATE: Final = "state"
POSITION: Final = "position"

# Bins. A name may have 15 characters.
HEAD: Final = "head"
USER: Final = "user"  # the server keeps a hash of the key, not the key
DUES: Final = "dues"  # what the indexes of due users find, in full
RENEWED: Final = "renewed"  # when segments and states were last given a new TTL
TTL: Final = "ttl"  # the TTL that was given last, in seconds
LONG: Final = "long"  # since when the tail has held its oldest full segment, ms since epoch
EPOCH: Final = "epoch"
COUNT: Final = "count"
DATA: Final = "data"
SEALED: Final = "sealed"  # when a segment was written, ms since epoch

HEAD_BINS: Final = [HEAD, RENEWED, TTL, LONG]
PROFILE_BINS: Final = [HEAD, EPOCH, COUNT, DATA]
DATA_BINS: Final = [EPOCH, COUNT, DATA]
SEGMENT_BINS: Final = [EPOCH, COUNT, DATA, SEALED]
DUE_BINS: Final = [USER, DUES]

IDENTITY: Final = "identity"
"""The key of the store's identity, among the positions."""

KEEP_TTL: Final[int] = aerospike.TTL_DONT_UPDATE
"""The TTL of a write that leaves the record the time it has."""

SECONDS: Final = (1 << 32) - 1
"""The last second, since epoch, that the index of due users can tell."""

_DUE: Final = struct.Struct("<QQQI")
_LIST: Final = struct.Struct("<QQ")
_LIST_BITS: Final = 31


@cache
def due_bins(slots: int) -> tuple[str, ...]:
    """Names of the bins whose indexes find due users."""
    return ("due", *(f"due{slot}" for slot in range(1, slots)))


def head_write(
    key: Key, user: str, head: bytes, old: Stored | None, kept: dict[str, int], slots: int, ttl: int
) -> Write:
    """The write of a whole sequence record, refused where it is not as it was read any more.

    Args:
        key, user: of the record.
        head: its new head.
        old: the record as it was read; None: there was none.
        kept: its bins `RENEWED`, `TTL` and `LONG`.
        slots: for how many bundles a user can be found as due.
        ttl: of the record, as the client's.
    """
    bins: dict[str, object] = {HEAD: head, USER: user.encode(), **kept}
    if records.has_coverages(head):
        bins |= _dues(user, records.read_counters(head, user), slots)
    policy: dict[str, object] = {"ttl": ttl}
    meta: dict[str, int] | None = None
    if old is None:
        policy["exists"] = aerospike.POLICY_EXISTS_CREATE
    else:
        # Replaced as a whole, so that the bins of who was due go, too.
        policy["exists"] = aerospike.POLICY_EXISTS_REPLACE
        policy["gen"] = aerospike.POLICY_GEN_EQ
        meta = {"gen": old.generation}
    return Write(key, _writes(bins), meta=meta, policy=policy)


def _dues(user: str, counters: records.Counters, slots: int) -> dict[str, object]:
    """The bins by which a user is found as due."""
    # Those last written: the others are mostly of bundles that nobody serves any more.
    waiting = [c for c in counters.coverages if c.since][-slots:]
    if not waiting:
        return {}
    dues = b"".join(
        _DUE.pack(c.bundle, counters.owner, *counters.due_user(user, c.bundle)[1:]) for c in waiting
    )
    keys = (_due_key(counters.owner, c.bundle, c.since // 1000) for c in waiting)
    return {DUES: dues, **dict(zip(due_bins(slots), keys, strict=False))}


def segment_write(key: Key, epoch: int, number: int, data: bytes, now_ms: int, ttl: int) -> Write:
    """The write of a sealed segment, refused where its place holds a later one already."""
    return monotone_write(key, epoch, number, data, ttl, {SEALED: now_ms})


def sealed_ms(record: Stored | None, epoch: int, number: int, data: bytes) -> int | None:
    """Since when a record holds exactly that segment; None: it does not, or nobody knows."""
    if record is None:
        return None
    bins = record.bins
    held = (bins.get(EPOCH), bins.get(COUNT), bins.get(DATA)) == (epoch, number, data)
    return bins.get(SEALED) if held else None


def monotone_write(
    key: Key,
    epoch: int,
    count: int,
    data: bytes,
    ttl: int,
    more: dict[str, object] | None = None,
) -> Write:
    """A write that the server refuses where it holds a newer (epoch, count) already."""
    not_newer = expressions.Or(
        expressions.LT(expressions.IntBin(EPOCH), epoch),
        expressions.And(
            expressions.Eq(expressions.IntBin(EPOCH), epoch),
            expressions.LE(expressions.IntBin(COUNT), count),
        ),
    ).compile()
    return Write(
        key,
        _writes({EPOCH: epoch, COUNT: count, DATA: data, **(more or {})}),
        policy={"ttl": ttl, "expressions": not_newer},
    )


def older_removal(key: Key, epoch: int) -> Remove:
    """The removal of a record, refused where it is of that epoch already."""
    older = expressions.LT(expressions.IntBin(EPOCH), epoch).compile()
    return Remove(key, policy={"expressions": older})


def unchanged_write(
    key: Key, epoch: int, count: int, data: bytes, old: Stored | None, ttl: int
) -> Write:
    """A write that the server refuses where the record is not as it was read any more."""
    bins = _writes({EPOCH: epoch, COUNT: count, DATA: data})
    if old is None:
        return Write(key, bins, policy={"ttl": ttl, "exists": aerospike.POLICY_EXISTS_CREATE})
    policy = {"ttl": ttl, "gen": aerospike.POLICY_GEN_EQ}
    return Write(key, bins, meta={"gen": old.generation}, policy=policy)


def touch(key: Key, ttl: int) -> Write:
    """A write that only gives a record a new TTL."""
    return Write(key, [operations.touch()], policy={"ttl": ttl})


def first_write(key: Key, data: bytes, ttl: int) -> Write:
    """The write of a record that is not there yet."""
    return Write(
        key,
        _writes({DATA: data}),
        policy={"ttl": ttl, "exists": aerospike.POLICY_EXISTS_CREATE},
    )


def interests_in(record: Stored | None, epoch: int) -> tuple[Version | None, bytes | None]:
    """The interest state in a record, unless it is of another epoch: of a sequence that expired."""
    if record is None:
        return None, None
    version = Version(record.bins[EPOCH], record.bins[COUNT])
    if version.epoch != epoch:
        return None, None
    return version, bytes(record.bins[DATA])


def covered_in(record: Stored | None, epoch: int) -> int:
    """How many behaviors of that epoch the interest state in a record covers; 0: none is there."""
    if record is None or record.bins[EPOCH] != epoch:
        return 0
    return int(record.bins[COUNT])


def due_span(bin_name: str, owner: int, bundle: int, until_s: int) -> tuple[Any, ...]:
    """The predicate that finds an owner's users due for a bundle since a second up to
    ``until_s``.
    """
    first, last = _due_key(owner, bundle, 0), _due_key(owner, bundle, until_s)
    return tuple(predicates.between(bin_name, first, last))


def due_users(rows: Sequence[dict[str, Any]], owner: int, bundle: int) -> list[DueUser]:
    """The users in an answer of the index who are the owner's, and still due for the bundle."""
    return [
        DueUser(bins[USER].decode(), since, waiting)
        for bins in rows
        # The index knows 31 bits of the list; and a record may have become clean meanwhile.
        if USER in bins and DUES in bins
        for of, its, since, waiting in _DUE.iter_unpack(bins[DUES])
        if (of, its) == (bundle, owner)
    ]


def ttl_of(seconds: float) -> int:
    """A TTL as the client takes it; 0 seconds: the record never expires."""
    return min(max(1, round(seconds)), MAX_TTL_S) if seconds else aerospike.TTL_NEVER_EXPIRE


def _due_key(owner: int, bundle: int, since_s: int) -> int:
    """The value that an index orders due users by: 31 bits of whose list it is, then the second."""
    of = xxhash.xxh3_64_intdigest(_LIST.pack(owner, bundle)) >> 64 - _LIST_BITS
    return of << 32 | min(since_s, SECONDS)


def _writes(bins: dict[str, object]) -> list[dict[str, Any]]:
    return [operations.write(name, value) for name, value in bins.items()]
