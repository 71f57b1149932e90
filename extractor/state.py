"""The interest state: what the extractor leaves behind for the scorer, and its record format.

What all systems keep of a user is in the header and the first arrays: which bundle made it, up to
where, the newest items, and the distinct ones with their counts and times. What one system keeps
besides (ENCODE: centers, interests, sizes) are named tensors, whose types and shapes the bundle's
manifest lays out (`Layout`), so that a record carries numbers alone. An axis that depends on the
user's behaviors has a name in the layout and its length in the record.

A record, format 2, little-endian whatever machine writes it; each array begins at a multiple of 8:

    offset  size  field
         0     4  magic "LLIS"
         4     4  format version, u32 (this module writes and reads FORMAT)
         8     8  xxh3-64 of every byte from offset 16 to the end
        16    16  bundle
        32     8  epoch, i64
        40     8  count, u64
        48     8  last_time_ms, i64
        56     4  length of recent r, u32
        60     4  number of distinct items n, u32
        64    4a  length of each named axis of the layout, u32, in the order of `Layout.axes`
                  recent u64[r], item_keys u64[n], item_last u32[n], item_counts u16[n],
                  the layout's tensors in its order

The checksum is there because a decoded state feeds a model that would turn any flipped bit into a
plausible CTR.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import xxhash

from infra.arrays import U64, Array
from infra.errors import StoreCorrupt
from infra.store import Version
from models.bundle import StateTensor
from models.features import History

MAGIC: Final = b"LLIS"
FORMAT: Final = 2
DIGEST_BYTES: Final = 16

_PREFIX: Final = struct.Struct("<4sIQ")
_HEADER: Final = struct.Struct("<4sIQ16sqQqII")
_ALIGNED: Final = 8
_PADDING: Final = bytes(_ALIGNED)
_COMMON: Final[tuple[tuple[np.dtype[Any], int], ...]] = (
    (np.dtype("<u8"), 0),
    (np.dtype("<u8"), 1),
    (np.dtype("<u4"), 1),
    (np.dtype("<u2"), 1),
)
"""Type of recent, item_keys, item_last and item_counts, and which length each has: r or n."""
_COMMON_KINDS: Final = tuple(kind for kind, _ in _COMMON)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class InterestState:
    """What one user's behavior sequence comes down to, as of a version.

    Decoded states hold read-only views of the record; nobody writes into a state.
    """

    bundle: bytes
    """16-byte digest of the bundle that made it. A state of another bundle means nothing to this
    one's scorer."""
    version: Version
    """The sequence's version that it covers; what the store orders states by."""
    last_time_ms: int
    """Newest event time of the last L behaviors, ms since epoch; 0: no behaviors."""
    recent: U64
    """u64[<=M]: item keys of the newest behaviors, newest last."""
    history: History
    """The distinct items of the last L behaviors, their counts (u16) and last times."""
    tensors: Mapping[str, Array]
    """What the system keeps besides, by the names of the bundle's layout."""

    @property
    def epoch(self) -> int:
        """When the user's record was created, ms since epoch."""
        return self.version.epoch

    @property
    def count(self) -> int:
        """Behaviors ever applied that this state covers."""
        return self.version.count


class Layout:
    """How the tensors of one bundle's states lie in a record.

    >>> layout = Layout({"sizes": StateTensor("uint32", ("K",))})
    >>> layout.axes
    ('K',)
    """

    def __init__(self, tensors: Mapping[str, StateTensor]) -> None:
        """Take the tensors as a manifest names them (`models.bundle.Manifest.stored`)."""
        self._specs = {
            name: (np.dtype(spec.dtype).newbyteorder("<"), tuple(spec.shape))
            for name, spec in tensors.items()
        }
        named = [
            axis for _, shape in self._specs.values() for axis in shape if isinstance(axis, str)
        ]
        self.axes: tuple[str, ...] = tuple(dict.fromkeys(named))
        """Axes whose length depends on the user, as they first appear."""
        self._lengths = struct.Struct(f"<{len(self.axes)}I")

    def encode(self, state: InterestState) -> bytes:
        """The record. Raises ValueError where arrays fit neither each other nor the layout: a
        programming error, caught before it becomes somebody's corrupt record.
        """
        lengths, arrays = self._checked(state)
        header = _HEADER.pack(
            MAGIC,
            FORMAT,
            0,
            state.bundle,
            state.version.epoch,
            state.version.count,
            state.last_time_ms,
            len(state.recent),
            len(state.history.item_keys),
        )
        parts: list[Any] = [header[_PREFIX.size :], self._lengths.pack(*lengths.values())]
        at = _HEADER.size + self._lengths.size
        for array in arrays:
            pad = -at % _ALIGNED
            if pad:
                parts.append(_PADDING[:pad])
            parts.append(array)
            at += pad + array.nbytes
        covered = b"".join(parts)
        return _PREFIX.pack(MAGIC, FORMAT, xxhash.xxh3_64_intdigest(covered)) + covered

    def decode(self, record: bytes | memoryview, user: str | None = None) -> InterestState:
        """The state held in a record, as zero-copy read-only views.

        Raises:
            StoreCorrupt: the record is truncated, altered, of another format or layout, or no
                interest state at all. ``user``, where given, is named in the message.
        """
        start = _HEADER.size + self._lengths.size
        if len(record) < start:
            raise _corrupt(user, f"{len(record)} bytes, shorter than its {start}-byte header")
        magic, written_format, checksum, bundle, epoch, count, last_time_ms, r, n = (
            _HEADER.unpack_from(record)
        )
        if magic != MAGIC:
            raise _corrupt(user, f"begins with {magic!r}, not an interest state")
        if written_format != FORMAT:
            raise _corrupt(user, f"has format {written_format}, this version reads {FORMAT}")
        lengths = dict(zip(self.axes, self._lengths.unpack_from(record, _HEADER.size), strict=True))
        shapes: list[tuple[np.dtype[Any], tuple[int, ...]]] = [
            (kind, ((r, n)[which],)) for kind, which in _COMMON
        ]
        shapes += [
            (kind, tuple([lengths[axis] if isinstance(axis, str) else axis for axis in shape]))
            for kind, shape in self._specs.values()
        ]
        places = []
        at = start
        for kind, shape in shapes:
            at += -at % _ALIGNED
            places.append(at)
            at += kind.itemsize * prod(shape)
        if at != len(record):
            raise _corrupt(user, f"{len(record)} bytes where its header announces {at}")
        if xxhash.xxh3_64_intdigest(memoryview(record)[_PREFIX.size :]) != checksum:
            raise _corrupt(user, "fails its checksum")
        recent, keys, last, counts, *tensors = [
            np.ndarray(shape, kind, record, place)
            for (kind, shape), place in zip(shapes, places, strict=True)
        ]
        return InterestState(
            bundle=bundle,
            version=Version(epoch, count),
            last_time_ms=last_time_ms,
            recent=recent,
            history=History(keys, counts, last),
            tensors=dict(zip(self._specs, tensors, strict=True)),
        )

    def _checked(self, state: InterestState) -> tuple[dict[str, int], list[Array]]:
        """The length of each named axis, and the arrays as a record has them."""
        history, tensors = state.history, state.tensors
        if len(state.bundle) != DIGEST_BYTES:
            raise ValueError(f"bundle digest of {len(state.bundle)} bytes, not {DIGEST_BYTES}")
        if not len(history.item_keys) == len(history.last) == len(history.counts):
            raise ValueError("the history's keys, counts and times differ in length")
        if tensors.keys() != self._specs.keys():
            raise ValueError(f"tensors {', '.join(tensors)}; laid out: {', '.join(self._specs)}")
        common = (state.recent, history.item_keys, history.last, history.counts)
        arrays = list(map(np.ascontiguousarray, common, _COMMON_KINDS))
        lengths: dict[str, int] = {}
        for name, (kind, shape) in self._specs.items():
            array = np.ascontiguousarray(tensors[name], kind)
            arrays.append(array)
            found = array.shape
            if len(found) != len(shape):
                raise ValueError(f"{name} of shape {found}, laid out as {shape}")
            for axis, size in zip(shape, found, strict=True):
                expected = lengths.setdefault(axis, size) if isinstance(axis, str) else axis
                if size != expected:
                    raise ValueError(f"{name} of shape {found}, laid out as {shape}: {lengths}")
        return lengths, arrays


def _corrupt(user: str | None, what: str) -> StoreCorrupt:
    whose = "interest state" if user is None else f"interest state of user {user!r}"
    return StoreCorrupt(f"{whose}: {what}; recluster the user to replace it")
