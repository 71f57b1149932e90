"""The layout of a user in Aerospike: the sets, their bins, and the writes that keep them right.

Four sets. ``sequence`` (key: user) holds the head, and beside it the few numbers by which due
users are found, so that applying events and marking their user due is one write of one record.
``segment`` (key: user and place in the ring) holds sealed segments, ``interest`` (key: user) the
interest states, ``position`` the bookmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import aerospike
from aerospike import predicates
from aerospike_helpers import expressions
from aerospike_helpers.batch.records import Write
from aerospike_helpers.operations import operations

from infra import records
from infra.store import DueUser, Version
from infra.stores.aerospike.client import Key, Stored

MAX_TTL_S: Final = 10 * 365 * 24 * 3600
"""The longest TTL that a server takes: ten years."""

SEQUENCE: Final = "sequence"
SEGMENT: Final = "segment"
INTEREST: Final = "interest"
POSITION: Final = "position"

# Bins. A name may have 15 characters.
HEAD: Final = "head"
USER: Final = "user"  # the server keeps a hash of the key, not the key
DUE: Final = "due"  # indexed; absent when clean
OWNER: Final = "owner"
SINCE: Final = "since"
WAITING: Final = "waiting"
RENEWED: Final = "renewed"
EPOCH: Final = "epoch"
COUNT: Final = "count"
DATA: Final = "data"

HEAD_BINS: Final = [HEAD, RENEWED]
PROFILE_BINS: Final = [HEAD, EPOCH, COUNT, DATA]
SEGMENT_BINS: Final = [EPOCH, COUNT, DATA]
DUE_BINS: Final = [USER, OWNER, SINCE, WAITING]

KEEP_TTL: Final[int] = aerospike.TTL_DONT_UPDATE
"""The TTL of a write that leaves the record the time it has."""

SECONDS: Final = (1 << 32) - 1
"""The last second, since epoch, that the index of due users can tell."""

_OWNER_BITS: Final = 31


def head_write(
    key: Key, user: str, head: bytes, old: Stored | None, renewed: int, ttl: int
) -> Write:
    """The write of a whole sequence record, refused where it is not as it was read any more.

    Args:
        key, user: of the record.
        head: its new head.
        old: the record as it was read; None: there was none.
        renewed: when its segments were last given a new TTL, ms since epoch; 0: never.
        ttl: of the record, as the client's.
    """
    counters = records.read_counters(head, user)
    bins: dict[str, object] = {HEAD: head, USER: user.encode()}
    if renewed:
        bins[RENEWED] = renewed
    if counters.since:
        bins[DUE] = _due_key(counters.owner, counters.since // 1000)
        bins[OWNER] = _signed(counters.owner)
        bins[SINCE] = counters.since
        bins[WAITING] = counters.waiting
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


def monotone_write(key: Key, epoch: int, count: int, data: bytes, ttl: int) -> Write:
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
        _writes({EPOCH: epoch, COUNT: count, DATA: data}),
        policy={"ttl": ttl, "expressions": not_newer},
    )


def touch(key: Key, ttl: int) -> Write:
    """A write that only gives a record a new TTL."""
    return Write(key, [operations.touch()], policy={"ttl": ttl})


def interests_in(record: Stored | None, epoch: int) -> tuple[Version | None, bytes | None]:
    """The interest state in a record, unless it is of another epoch: of a sequence that expired."""
    if record is None:
        return None, None
    version = Version(record.bins[EPOCH], record.bins[COUNT])
    if version.epoch != epoch:
        return None, None
    return version, bytes(record.bins[DATA])


def due_span(owner: int, until_s: int) -> tuple[Any, ...]:
    """The predicate that finds an owner's users due since a second up to ``until_s``."""
    span = predicates.between(DUE, _due_key(owner, 0), _due_key(owner, until_s))
    return tuple(span)


def due_users(rows: Sequence[dict[str, Any]], owner: int) -> list[DueUser]:
    """The users in an answer of the index who are the owner's, and still due."""
    mine = _signed(owner)
    return [
        DueUser(bins[USER].decode(), bins[SINCE], bins[WAITING])
        for bins in rows
        # The index knows 31 bits of the owner; and a record may have become clean meanwhile.
        if bins.get(OWNER) == mine and USER in bins and SINCE in bins
    ]


def ttl_of(seconds: float) -> int:
    """A TTL as the client takes it; 0 seconds: the record never expires."""
    return min(max(1, round(seconds)), MAX_TTL_S) if seconds else aerospike.TTL_NEVER_EXPIRE


def _due_key(owner: int, since_s: int) -> int:
    """The value that the index orders due users by: 31 bits of the owner, then the second."""
    return (owner >> 64 - _OWNER_BITS) << 32 | min(since_s, SECONDS)


def _signed(value: int) -> int:
    """A u64 as the server's signed integer."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _writes(bins: dict[str, object]) -> list[dict[str, Any]]:
    return [operations.write(name, value) for name, value in bins.items()]
