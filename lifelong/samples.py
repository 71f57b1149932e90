"""``lifelong check --sample``: what a source makes of a file of its records, event by event.

Nothing is asked of Kafka or of the store, so that a mapping can be tried before there is any.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console

from infra.errors import SettingsError, one_line
from infra.schema_registry import SchemaRegistry
from infra.settings import Settings
from streaming.events.conversion import Event
from streaming.events.decoder import EventDecoder, Outcome
from streaming.events.rejects import Rejected
from streaming.events.times import moment

LINES: Final = {".jsonl", ".ndjson", ".tsv", ".txt"}
"""Suffixes of files that hold a record a line; any other holds one record."""

BASE64: Final = ".b64"
"""Suffix of files that hold a record a line, in base64: of formats that are no text."""

Header = tuple[str, bytes | None]


class _Kcat(msgspec.Struct):
    """A record as ``kcat -J`` prints it, as far as it matters here."""

    topic: str
    offset: int
    payload: str | None
    key: str | None = None
    headers: list[str | None] = []


class Sample(NamedTuple):
    """One record of a sample."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]
    keyed: bool
    """Whether its key is known; otherwise it passes for what it must be."""


def run_sample(settings: Settings, file: Path, *, quiet: bool) -> dict[str, Any]:
    """Tell what each event of a file becomes, or why it is refused or ignored.

    Args:
        settings: of one source (`Settings.reading`).
        file: its records, one a line where the suffix is of `LINES`, or `BASE64`.
        quiet: print nothing.

    Raises:
        SettingsError: the file cannot be read, or holds nothing.
    """
    registry = SchemaRegistry(settings.registry)
    strict, lenient = (
        EventDecoder(settings.events, registry, keyless=one) for one in (False, True)
    )
    names = settings.events.action_names
    now_ms = time.time_ns() // 1_000_000
    records: list[tuple[int, list[dict[str, Any]]]] = []
    for number, one in enumerate(_records(file), 1):
        decoder = strict if one.keyed else lenient
        outcomes = decoder.outcomes(one.key, one.value, one.headers, now_ms)
        records.append((number, [_told(outcome, names) for outcome in outcomes]))
    told = [event for _, events in records for event in events]
    counts = {
        what: sum(what in event for event in told) for what in ("user_id", "ignored", "refused")
    }
    report = {
        "ok": counts["refused"] == 0,
        "source": settings.events.said,
        "format": settings.events.format,
        "behaviors": counts["user_id"],
        "ignored": counts["ignored"],
        "refused": counts["refused"],
        "records": [{"record": number, "events": events} for number, events in records],
    }
    if not quiet:
        _show(report)
    return report


def _records(file: Path) -> Iterator[Sample]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingsError(f"--sample {file}: cannot be read: {error.strerror}") from None
    values = [content]
    suffix = file.suffix.lower()
    if suffix in LINES or suffix == BASE64:
        values = [line for line in content.split(b"\n") if line.strip()]
    if suffix == BASE64:
        try:
            values = [base64.b64decode(line.strip(), validate=True) for line in values]
        except binascii.Error as error:
            raise SettingsError(f"--sample {file}: is not base64: {one_line(error)}") from None
    if not content or not values:
        raise SettingsError(f"--sample {file}: holds nothing; write a record a line")
    for value in values:
        try:
            record = msgspec.json.decode(value, type=_Kcat)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield Sample(None, value, (), keyed=False)
        else:
            yield Sample(_bytes(record.key), _bytes(record.payload), _headers(record), keyed=True)


def _headers(record: _Kcat) -> list[Header]:
    names, values = record.headers[::2], record.headers[1::2]
    return [(name or "", _bytes(value)) for name, value in zip(names, values, strict=False)]


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _told(outcome: Outcome, names: Sequence[str]) -> dict[str, Any]:
    if isinstance(outcome, Event):
        return {
            "user_id": outcome.user,
            "item_id": outcome.item,
            "action": names[outcome.action - 1],
            "event_time": outcome.time,
            "event_id": outcome.event_id,
            "category_id": outcome.category,
            "dwell_ms": outcome.dwell,
        }
    if isinstance(outcome, Rejected):
        return {"refused": outcome.reason.value, "detail": outcome.detail}
    return {"ignored": outcome.reason}


def _show(report: dict[str, Any]) -> None:
    # Not broken at the terminal's width: what is shown here gets copied.
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for record in report["records"]:
        for event in record["events"]:
            console.print(f"{record['record']}: {_line(event)}")
    counts = ", ".join(f"{report[what]} {what}" for what in ("behaviors", "ignored", "refused"))
    console.print(
        f"{len(report['records'])} records of {report['source']} ({report['format']}): {counts}"
    )


def _line(event: dict[str, Any]) -> str:
    if "refused" in event:
        return f"refused, {event['refused']}: {event['detail']}"
    if "ignored" in event:
        return f"ignored, {event['ignored']}"
    line = (
        f"{event['action']} of {event['item_id']} by {event['user_id']}"
        f" at {moment(event['event_time'])}"
    )
    beside = (("category", "category_id"), ("dwell_ms", "dwell_ms"), ("id", "event_id"))
    return line + "".join(f", {word} {event[name]}" for word, name in beside if event[name])
