"""What a job reads: files, in folders and by patterns, and what it asks of any other input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Final, Protocol

from infra.errors import SourceError
from infra.settings import EventSettings
from infra.telemetry import get_logger
from streaming.files.formats.text import Text
from streaming.files.reader import EventFile, OnBad, is_event_file
from streaming.history.packing import Packed, pack
from streaming.history.spill import SPILLED_TOGETHER

_TEXT_BYTES: Final = 60
"""Of a line of text, about; compressed, a fifth of it."""

_READ_ROWS: Final = SPILLED_TOGETHER // 4
_READ_TEXT: Final = 8 << 20

log: Final = get_logger(__name__)


class Input(Protocol):
    """A part of what a job reads."""

    name: str
    """For people."""
    identity: int
    """u64 that tells its content from another's."""
    rows: int
    """How many events it has, about."""

    @property
    def skipped(self) -> int:
        """What was no event, so far."""

    def events(self) -> Iterator[tuple[Packed, float]]:
        """Its events, some at a time, in its order, and how much of it was read then, 0 to 1.

        Raises:
            SourceError, BrokerError: it cannot be read.
        """
        ...


class FileInput:
    """The events of a file."""

    def __init__(
        self,
        path: Path,
        mapping: EventSettings | None = None,
        *,
        on_bad: OnBad = "stop",
        text: Text | None = None,
        now_ms: int | None = None,
    ) -> None:
        """Open it far enough to know that it can be read (see `EventFile`)."""
        self._file = EventFile(
            path,
            mapping,
            on_bad=on_bad,
            text=text,
            batch_rows=_READ_ROWS,
            text_block=_READ_TEXT,
            now_ms=now_ms,
        )
        self.name = str(path)
        self.identity = self._file.identity
        bytes_a_row = _TEXT_BYTES // 5 if self._file.compression else _TEXT_BYTES
        self.rows = self._file.rows or self._file.size // bytes_a_row

    @property
    def skipped(self) -> int:
        return self._file.skipped.total()

    def events(self) -> Iterator[tuple[Packed, float]]:
        for batch in self._file.batches():
            yield pack(batch), batch.fraction


def find_files(places: Sequence[str]) -> list[Path]:
    """The files that are named, or lie in a folder that is, at any depth, or match a pattern, each
    once; of each place in the order of their names.

    Raises:
        SourceError: there is none at one of the places.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        if path.is_dir():
            files = _files_in(path)
        elif path.exists():
            files = [path]
        else:
            matches = map(Path, glob(place, recursive=True))  # noqa: PTH207  # absolute ones, too
            files = sorted(match for match in matches if match.is_file())
        if not files:
            what = "no file of events lies in it" if path.is_dir() else "there is no such file"
            raise SourceError(f"{place}: {what}; name files, folders or a pattern")
        found.update(dict.fromkeys(files))
    return list(found)


def _files_in(folder: Path) -> list[Path]:
    """The files of events in a folder; those whose names begin with a point or a line below, as
    programs leave them beside data, are none.
    """
    there = sorted(f for f in folder.rglob("*") if f.is_file() and f.name[0] not in "._")
    files = [file for file in there if is_event_file(file)]
    if len(files) < len(there):
        first = next(file for file in there if not is_event_file(file))
        left_out = len(there) - len(files)
        log.warning("files of no known format left out", files=left_out, first=str(first))
    return files
