"""The interest state: what the extractor leaves behind for the scorer, and its record format.

A record is one header, then plain arrays, widest elements first so that every one of them is
aligned when the record is:

    offset  size  field
         0     4  magic "LLIS"
         4     4  format version, u32 (this module writes and reads FORMAT)
         8     8  xxh3-64 of every byte from offset 16 to the end
        16    16  bundle
        32     8  epoch, i64
        40     8  count, u64
        48     8  last_time_ms, i64
        56     2  K, u16
        58     2  m, u16
        60     2  d, u16
        62     2  length of recent, u16
        64     4  number of distinct items n, u32
        68     2  recent_length, u16
        70     2  zero
        72        recent u64[<=M], item_keys u64[n], centers f32[K,m], interests f32[K,d],
                  sizes u32[K], item_last u32[n], item_counts u16[n]

Everything is little-endian, whatever machine writes it. The checksum is there because a decoded
state feeds a model that would turn any flipped bit into a plausible CTR.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import xxhash

from infra.arrays import F32, I64, U16, U32, U64
from infra.errors import StoreCorrupt
from infra.store import Behaviors, Version
from models.features import History

MAGIC: Final = b"LLIS"
FORMAT: Final = 1
DIGEST_BYTES: Final = 16

_PREFIX: Final = struct.Struct("<4sIQ")
_HEADER: Final = struct.Struct("<4sIQ16sqQqHHHHIH2x")
COUNT_MAX: Final = np.iinfo(np.uint16).max
SECONDS_MAX: Final = np.iinfo(np.uint32).max


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class InterestState:
    """What one user's behavior sequence comes down to (ENCODE, Algorithm 1), as of a version.

    Decoded states hold read-only views of the record; nobody writes into a state.
    """

    bundle: bytes
    """16-byte digest of the bundle whose embeddings and projection made it. A state of another
    bundle means nothing to this one's scorer."""
    epoch: int
    """When the user's record was created, ms since epoch (`infra.store.Version.epoch`)."""
    count: int
    """Behaviors ever applied that this state covers (`infra.store.Version.count`)."""
    centers: F32
    """f32[K,m], unit length: the clusters' centers in the projected space. Zero when empty."""
    sizes: U32
    """u32[K]: behaviors in each cluster; 0: the cluster is empty, its rows are zero."""
    interests: F32
    """f32[K,d]: the clusters' interests u (Eq. 8) in the embedding space."""
    recent: U64
    """u64[<=M]: item keys of the newest behaviors, newest last."""
    item_keys: U64
    """u64[n], ascending: the distinct items of the last L behaviors."""
    item_counts: U16
    """u16[n]: how often each of them occurs there; stops at 65,535."""
    item_last: U32
    """u32[n]: when each was last met, seconds since epoch (event time)."""
    last_time_ms: int
    """Newest event time of the last L behaviors, ms since epoch; 0: no behaviors."""
    recent_length: int = 50
    """M: how many item keys `recent` may hold."""

    @property
    def version(self) -> Version:
        """What the store orders states by."""
        return Version(self.epoch, self.count)

    @property
    def history(self) -> History:
        """The repeat-purchase signal's input: distinct items, their counts and last times."""
        return History(self.item_keys, self.item_counts, self.item_last)

    def with_newer(self, newer: Behaviors) -> Self:
        """This state with behaviors that came after it merged into `recent` and the history.

        ``newer`` is BEHAVIOR[n], oldest first: those from the state's count on. Interests stay as
        they are; the scorer sets each newer behavior beside them as an interest of its own.
        Counts then cover up to L + n behaviors, since the oldest cannot be told any more.
        """
        if len(newer) == 0:
            return self
        keys = np.ascontiguousarray(newer["item"])
        times = np.ascontiguousarray(newer["time"])
        item_keys, item_counts, item_last = _merge(
            self.item_keys, self.item_counts, self.item_last, keys, times
        )
        recent = np.concatenate((self.recent, keys))
        return type(self)(
            bundle=self.bundle,
            epoch=self.epoch,
            count=self.count + len(newer),
            centers=self.centers,
            sizes=self.sizes,
            interests=self.interests,
            recent=recent[max(0, len(recent) - self.recent_length) :],
            item_keys=item_keys,
            item_counts=item_counts,
            item_last=item_last,
            last_time_ms=max(self.last_time_ms, int(times.max())),
            recent_length=self.recent_length,
        )

    def encode(self) -> bytes:
        """The record. Raises ValueError when the arrays do not fit each other: a programming
        error, caught before it becomes somebody's corrupt record.
        """
        self._check_shapes()
        k, m = self.centers.shape
        body = b"".join(
            (
                np.asarray(self.recent, "<u8").tobytes(),
                np.asarray(self.item_keys, "<u8").tobytes(),
                np.asarray(self.centers, "<f4").tobytes(),
                np.asarray(self.interests, "<f4").tobytes(),
                np.asarray(self.sizes, "<u4").tobytes(),
                np.asarray(self.item_last, "<u4").tobytes(),
                np.asarray(self.item_counts, "<u2").tobytes(),
            )
        )
        header = _HEADER.pack(
            MAGIC,
            FORMAT,
            0,
            self.bundle,
            self.epoch,
            self.count,
            self.last_time_ms,
            k,
            m,
            self.interests.shape[1],
            len(self.recent),
            len(self.item_keys),
            self.recent_length,
        )
        covered = header[_PREFIX.size :] + body
        checksum = xxhash.xxh3_64_intdigest(covered)
        return _PREFIX.pack(MAGIC, FORMAT, checksum) + covered

    @classmethod
    def decode(cls, record: bytes | memoryview, user: str | None = None) -> Self:
        """The state held in a record, as zero-copy read-only views.

        Raises:
            StoreCorrupt: the record is truncated, altered, of another format or no interest state
                at all. ``user``, where given, is named in the message.
        """
        if len(record) < _HEADER.size:
            raise _corrupt(
                user, f"{len(record)} bytes, shorter than its {_HEADER.size}-byte header"
            )
        (
            magic,
            written_format,
            checksum,
            bundle,
            epoch,
            count,
            last_time_ms,
            k,
            m,
            d,
            recent_count,
            n,
            recent_length,
        ) = _HEADER.unpack_from(record)
        if magic != MAGIC:
            raise _corrupt(user, f"begins with {magic!r}, not an interest state")
        if written_format != FORMAT:
            raise _corrupt(user, f"has format {written_format}, this version reads {FORMAT}")
        size = _HEADER.size + 8 * (recent_count + n) + 4 * (k * m + k * d + k + n) + 2 * n
        if len(record) != size:
            raise _corrupt(user, f"{len(record)} bytes where its header announces {size}")
        if xxhash.xxh3_64_intdigest(memoryview(record)[_PREFIX.size :]) != checksum:
            raise _corrupt(user, "fails its checksum")

        at = _HEADER.size
        recent = np.frombuffer(record, "<u8", recent_count, at)
        at += recent.nbytes
        item_keys = np.frombuffer(record, "<u8", n, at)
        at += item_keys.nbytes
        centers = np.frombuffer(record, "<f4", k * m, at).reshape(k, m)
        at += centers.nbytes
        interests = np.frombuffer(record, "<f4", k * d, at).reshape(k, d)
        at += interests.nbytes
        sizes = np.frombuffer(record, "<u4", k, at)
        at += sizes.nbytes
        item_last = np.frombuffer(record, "<u4", n, at)
        at += item_last.nbytes
        item_counts = np.frombuffer(record, "<u2", n, at)
        return cls(
            bundle=bundle,
            epoch=epoch,
            count=count,
            centers=centers,
            sizes=sizes,
            interests=interests,
            recent=recent,
            item_keys=item_keys,
            item_counts=item_counts,
            item_last=item_last,
            last_time_ms=last_time_ms,
            recent_length=recent_length,
        )

    def _check_shapes(self) -> None:
        if len(self.bundle) != DIGEST_BYTES:
            raise ValueError(f"bundle digest of {len(self.bundle)} bytes, not {DIGEST_BYTES}")
        k = len(self.centers)
        if self.centers.ndim != 2 or self.interests.ndim != 2:
            raise ValueError("centers and interests must be matrices [K,m] and [K,d]")
        if len(self.interests) != k or len(self.sizes) != k:
            raise ValueError("centers, interests and sizes differ in K")
        if not len(self.item_keys) == len(self.item_counts) == len(self.item_last):
            raise ValueError("item_keys, item_counts and item_last differ in length")
        if len(self.recent) > self.recent_length:
            raise ValueError(f"{len(self.recent)} recent behaviors, more than {self.recent_length}")


def _corrupt(user: str | None, what: str) -> StoreCorrupt:
    whose = "interest state" if user is None else f"interest state of user {user!r}"
    return StoreCorrupt(f"{whose}: {what}; recluster the user to replace it")


def _merge(
    item_keys: U64, item_counts: U16, item_last: U32, keys: U64, times: I64
) -> tuple[U64, U16, U32]:
    """A history with further behaviors (``keys``, ``times`` in ms) counted into it."""
    fresh, inverse, times_met = np.unique(keys, return_inverse=True, return_counts=True)
    last = np.zeros(len(fresh), np.int64)
    np.maximum.at(last, inverse, times // 1000)
    at = np.searchsorted(item_keys, fresh)
    known = np.zeros(len(fresh), np.bool_)
    inside = at < len(item_keys)
    known[inside] = item_keys[at[inside]] == fresh[inside]
    counts = times_met.astype(np.int64)
    counts[known] += item_counts[at[known]]
    last[known] = np.maximum(last[known], item_last[at[known]])
    kept = np.ones(len(item_keys), np.bool_)
    kept[at[known]] = False
    merged_keys = np.concatenate((item_keys[kept], fresh))
    order = np.argsort(merged_keys, kind="stable")
    merged_counts = np.concatenate(
        (item_counts[kept], np.minimum(counts, COUNT_MAX).astype(np.uint16))
    )
    merged_last = np.concatenate((item_last[kept], np.clip(last, 0, SECONDS_MAX).astype(np.uint32)))
    return merged_keys[order], merged_counts[order], merged_last[order]
