"""``lifelong deadletters``: what was refused, and sending it again once that is put right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from infra.errors import SettingsError
from infra.settings import Settings
from streaming.events.rejects import Reason
from streaming.letters import Letter, letters, send_again, sent_again

SHOWN_BYTES: Final = 200
"""Of a payload, as it is shown to people; JSON has up to `JSON_BYTES`."""
JSON_BYTES: Final = 10_000


def run_list(settings: Settings, *, quiet: bool) -> dict[str, Any]:
    """Count the letters by reason and by the topic that their events came from."""
    counts: dict[tuple[str, str], dict[str, Any]] = {}
    again: dict[str, dict[int, int]] = {}
    for letter in letters(settings.broker):
        if letter.reason not in again:
            again[letter.reason] = sent_again(settings.broker, letter.reason)
        row = counts.setdefault(
            (letter.reason, letter.source.topic),
            {
                "reason": letter.reason,
                "topic": letter.source.topic,
                "letters": 0,
                "waiting": 0,
                "cut": 0,
                "first_ms": letter.timestamp,
                "last_ms": letter.timestamp,
                "example": letter.detail,
            },
        )
        row["letters"] += 1
        row["cut"] += letter.cut
        row["waiting"] += letter.at.offset >= again[letter.reason].get(letter.at.partition, 0)
        row["first_ms"] = min(row["first_ms"], letter.timestamp)
        row["last_ms"] = max(row["last_ms"], letter.timestamp)
    rows = [counts[key] for key in sorted(counts)]
    if not quiet:
        table = Table("reason", "topic", box=None, pad_edge=False)
        for column in ("letters", "to send again", "cut"):
            table.add_column(column, justify="right")
        table.add_column("for example")
        for row in rows:
            numbers = (f"{row[name]:,}" for name in ("letters", "waiting", "cut"))
            table.add_row(row["reason"], row["topic"], *numbers, row["example"])
        Console(soft_wrap=True).print(
            table if rows else f"no letters in {settings.broker.dead_letter_topic}"
        )
    return {"topic": settings.broker.dead_letter_topic, "reasons": rows}


def run_show(
    settings: Settings, *, reasons: Sequence[str], limit: int, quiet: bool
) -> dict[str, Any]:
    """Show the newest letters, of some reasons or of all."""
    wanted = _known(reasons)
    newest: list[Letter] = []
    for letter in letters(settings.broker):
        if not wanted or letter.reason in wanted:
            newest.append(letter)
            if len(newest) > 2 * limit:
                newest = sorted(newest, key=lambda one: one.timestamp)[-limit:]
    newest = sorted(newest, key=lambda one: one.timestamp)[-limit:]
    if not quiet:
        console = Console(highlight=False, soft_wrap=True, markup=False)
        for letter in newest:
            source, cut = letter.source, ", cut" if letter.cut else ""
            where = f"{source.topic} {source.partition} {source.offset}"
            console.print(f"{where}: {letter.reason}{cut}: {letter.detail}")
            console.print(f"    {_shown(letter.key)}  {_shown(letter.value)}")
    return {
        "letters": [
            {
                "reason": letter.reason,
                "detail": letter.detail,
                **letter.source._asdict(),
                "time_ms": letter.timestamp,
                "key": _text(letter.key, JSON_BYTES),
                "value": _text(letter.value, JSON_BYTES),
                "cut": letter.cut,
            }
            for letter in newest
        ]
    }


def run_replay(settings: Settings, *, reasons: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Send the events of reasons again to where they came from; each goes once."""
    done = {}
    left = limit
    for reason in _known(reasons):
        some = send_again(settings.broker, reason, most=left)
        done[reason] = some._asdict()
        Console(stderr=True).print(
            f"{reason}: {some.sent:,} sent again, {some.cut:,} are not whole, {some.repeated:,}"
            " were there twice",
            highlight=False,
        )
        if left is not None:
            left -= some.sent
    return {"reasons": done, "sent": sum(one["sent"] for one in done.values())}


def _known(reasons: Sequence[str]) -> list[str]:
    for reason in reasons:
        if reason not in set(Reason):
            raise SettingsError(f"{reason!r} is no reason; there are {', '.join(Reason)}")
    return list(dict.fromkeys(reasons))


def _shown(data: bytes | None) -> str:
    text = _text(data, SHOWN_BYTES)
    return "none" if text is None else repr(text)


def _text(data: bytes | None, most: int) -> str | None:
    return None if data is None else data[:most].decode("utf-8", "backslashreplace")
