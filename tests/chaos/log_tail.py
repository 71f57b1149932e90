"""Cutting the tail off a partition's log, as a lost disk or an unclean election does it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

_BATCH: Final = struct.Struct(">qi")
"""How a batch of records begins: offset of the first, and bytes that follow."""


def cut_tail(data: Path, topic: str, partition: int, first: int, share: float) -> int:
    """Remove the batches in the last ``share`` of those from offset ``first`` on.

    The broker must have ended. Only the last segment is cut.

    Args:
        data: the broker's log directory.
        first: nothing below it is removed.

    Returns:
        Offset of the first record that is gone.
    """
    directory = data / f"{topic}-{partition}"
    log = max(directory.glob("*.log"))
    content = log.read_bytes()
    batches = [(at, offset) for at, offset in _batches(content) if offset >= first]
    at, offset = batches[int(len(batches) * (1 - share))]
    with log.open("r+b") as file:
        file.truncate(at)
    # What Kafka wrote of a clean end and of its producers would contradict the log.
    (data / ".kafka_cleanshutdown").unlink(missing_ok=True)
    for name in (log.with_suffix(".index"), log.with_suffix(".timeindex")):
        name.unlink(missing_ok=True)
    for snapshot in directory.glob("*.snapshot"):
        if int(snapshot.stem) > offset:
            snapshot.unlink()
    return offset


def _batches(content: bytes) -> list[tuple[int, int]]:
    """Position and first offset of each batch."""
    found, at = [], 0
    while at + _BATCH.size <= len(content):
        offset, length = _BATCH.unpack_from(content, at)
        if length <= 0 or at + _BATCH.size + length > len(content):
            break
        found.append((at, offset))
        at += _BATCH.size + length
    return found
