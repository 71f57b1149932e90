"""What an LMDB data file says of itself, read as a file.

LMDB maps the file and trusts it: who then reads a page that the file has lost is killed by SIGBUS.
So it is looked at before it is mapped. The layout is that of LMDB 0.9 on 64 bits: two meta pages,
of which the one with the newer transaction counts, and B-trees of pages.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np

from infra.errors import StoreCorrupt

EMPTY_S: Final = 1.0
"""How long a file may be empty: another process may be making it just now."""

REBUILD: Final = (
    "restore a backup (`lifelong store restore`), or move the directory away and rebuild the store"
    " from Kafka"
)
"""What to do about a data file that is damaged."""

_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_HEADER: Final = struct.Struct("=8x2xHH2x")
"""Of a page: flags, and where the list of its nodes ends, which follows."""
_META: Final = struct.Struct("=IIQQI36xQ48xQQ")
"""Of a meta page, after that: magic, version, address, size of the map, size of a page, root of the
tree of free pages, last page, transaction."""
_NODE: Final = struct.Struct("=HHHH")
"""Of a node: size of its data, flags, size of its key; in a branch all but the last are a page."""
_BRANCH, _LEAF, _META_PAGE = 1, 2, 8
_OVERFLOWING: Final = 1
_NO_PAGE: Final = 2**64 - 1


class Meta(NamedTuple):
    """A meta page."""

    map_size: int
    """Bytes of the largest map that a process has written with."""
    page_size: int
    free_root: int
    """Page at which the list of free pages begins."""
    last_page: int
    transaction: int


def check(path: Path) -> None:
    """Look whether a data file, in use or not, is whole enough to be mapped.

    Raises:
        StoreCorrupt: it is not, or is none, or of another LMDB.
        OSError: it cannot be read.
    """
    _await_content(path)
    with path.open("rb") as file:
        while True:
            meta = _newest(file, path)
            size = file.seek(0, os.SEEK_END)
            there = size // meta.page_size
            lost = meta.last_page + 1 - there
            # Pages at the end that were taken and freed in one transaction are never written.
            if lost <= 0 or lost == _free_pages(file, meta, there):
                return
            if _newest(file, path).transaction == meta.transaction:
                raise StoreCorrupt(
                    f"{path} is cut short: it has {size} bytes of"
                    f" {(meta.last_page + 1) * meta.page_size}; {REBUILD}"
                )
            # The list of free pages was written over while it was read.


def read_meta(path: Path) -> Meta:
    """The newest meta page of a data file.

    Raises:
        StoreCorrupt: there is none.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return _newest(file, path)


def _await_content(path: Path) -> None:
    until = time.monotonic() + EMPTY_S
    while not path.stat().st_size:
        if time.monotonic() > until:
            raise StoreCorrupt(f"{path} is empty; {REBUILD}")
        time.sleep(0.02)


def _newest(file: BinaryIO, path: Path) -> Meta:
    first = _read(file, path, 0)
    second = _read(file, path, first.page_size)
    return max(first, second, key=lambda meta: meta.transaction)


def _read(file: BinaryIO, path: Path, at: int) -> Meta:
    file.seek(at)
    page = file.read(_HEADER.size + _META.size)
    if len(page) < _HEADER.size + _META.size:
        raise StoreCorrupt(f"{path} is cut short: it ends within its first pages; {REBUILD}")
    flags, _ = _HEADER.unpack_from(page)
    magic, version, _, map_size, page_size, free_root, last, txn = _META.unpack_from(
        page, _HEADER.size
    )
    if magic != _MAGIC or version != _VERSION:
        raise StoreCorrupt(_not_ours(path, page))
    if not flags & _META_PAGE or page_size < 256 or page_size & (page_size - 1):
        raise StoreCorrupt(f"{path} is damaged in its first pages; {REBUILD}")
    return Meta(map_size, page_size, free_root, last, txn)


def _free_pages(file: BinaryIO, meta: Meta, first: int) -> int:
    """How many pages from ``first`` on are on the list of free ones, as far as it can be read."""
    count, pages = 0, [meta.free_root] if meta.free_root != _NO_PAGE else []
    with contextlib.suppress(struct.error, ValueError, OverflowError, OSError):
        for number in pages:  # which grows meanwhile
            page = _page(file, meta, number)
            flags, lower = _HEADER.unpack_from(page)
            if len(pages) > first or not flags & (_BRANCH | _LEAF):
                break
            for at in struct.unpack_from(f"={(lower - _HEADER.size) // 2}H", page, _HEADER.size):
                low, high, more, key_size = _NODE.unpack_from(page, at)
                if flags & _BRANCH:
                    pages.append(low | high << 16 | more << 32)
                    continue
                size, data = low | high << 16, page[at + _NODE.size + key_size :]
                if more & _OVERFLOWING:
                    place = struct.unpack_from("=Q", data)[0]
                    data = _page(file, meta, place, _HEADER.size + size)[_HEADER.size :]
                # A list begins with its length.
                count += int(np.sum(np.frombuffer(data[8:size], np.uint64) >= first))
    return count


def _page(file: BinaryIO, meta: Meta, number: int, size: int | None = None) -> bytes:
    file.seek(number * meta.page_size)
    return file.read(size or meta.page_size)


def _not_ours(path: Path, page: bytes) -> str:
    """What a file is instead, by where the magic number is, if anywhere, and what follows it."""
    head = page[:64]
    place = head.find(_MAGIC.to_bytes(4, sys.byteorder))
    made = "copy it where it was made with `mdb_dump` and `mdb_load`"
    if place >= 0:
        version = int.from_bytes(head[place + 4 : place + 8], sys.byteorder)
        if version != _VERSION:
            return f"{path} has format {version} of LMDB, this version reads {_VERSION}; {made}"
    if place >= 0 or struct.pack("<I", _MAGIC) in head or struct.pack(">I", _MAGIC) in head:
        return f"{path} was written on another kind of machine; {made}"
    return f"{path} is no LMDB file; correct store.url, or {REBUILD}"
