"""Logging: one line an event, as JSON for machines or colored text for people.

Log lines go to standard error; standard output is for results. Libraries that log through the
standard library (Faust, aiokafka, uvicorn) pass through the same formatter.
"""

from __future__ import annotations

import ast
import hashlib
import io
import logging
import re
import sys
from typing import Any, Final, Protocol, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from infra.settings import LogSettings

# Libraries that tell at INFO of each poll and heartbeat. Our own events say what came of it.
_TALKATIVE: Final = (
    "aiokafka",
    "faust",
    "mode",
    "asyncio",
    "httpx",
    "httpcore",
    "uvicorn.access",
    "urllib3",
)

# "user" and an id as errors show it; one that was cut off has no end.
_USER: Final = re.compile(r"""\b(users?) ('(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$))""")


class Log(Protocol):
    """A logger, for a part that only tells its progress; any library's fits."""

    def info(self, event: str, /) -> Any: ...

    def warning(self, event: str, /) -> Any: ...


def get_logger(name: str) -> BoundLogger:
    """A logger of events: ``get_logger(__name__).info("batch stored", events=4000)``.

    It works before `configure_logging` too; the standard library's defaults hold until then.
    """
    return cast(
        BoundLogger,
        structlog.wrap_logger(
            logging.getLogger(name),
            wrapper_class=BoundLogger,
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.PositionalArgumentsFormatter(),
                ProcessorFormatter.wrap_for_formatter,
            ],
        ),
    )


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send the process's log lines to ``stream`` (standard error) in the format of ``settings``.

    A second call replaces the first. Handlers that libraries installed for themselves are removed.
    """
    stream = stream or sys.stderr
    as_json = settings.format == "json" or (settings.format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(as_json=as_json, colors=stream.isatty(), users=settings.users))

    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    level = logging.getLevelNamesMapping()[settings.level]
    for name in list(logging.Logger.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _TALKATIVE:
        quiet = level if level <= logging.DEBUG else max(level, logging.WARNING)
        logging.getLogger(name).setLevel(quiet)
    logging.captureWarnings(True)


def without_users(text: str) -> str:
    """A text whose users are told by digits of their hash, where it names them as errors do.

    >>> without_users("the record of user 'ann' is truncated; remove it")
    'the record of user #49915e0d is truncated; remove it'
    """
    return _USER.sub(lambda found: f"{found[1]} #{_digits(found[2])}", text)


def _digits(shown: str) -> str:
    """The digits that stand for an id, which is shown as Python writes texts."""
    try:
        user = str(ast.literal_eval(shown))
    except (SyntaxError, ValueError):  # its end was cut off
        return "?"
    return hashed(user)


def hashed(user: str) -> str:
    """The digits that stand for a user's id: as many as tell a store's few odd users apart."""
    return hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()[:8]


def _formatter(*, as_json: bool, colors: bool, users: bool) -> ProcessorFormatter:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        _tidy,
    ]
    hiding: list[Processor] = [] if users else [_hide_users]
    rendered: list[Processor] = (
        [
            structlog.processors.format_exc_info,
            *hiding,
            structlog.processors.JSONRenderer(default=str),
        ]
        if as_json
        else [
            *hiding,
            structlog.dev.ConsoleRenderer(
                colors=colors,
                timestamp_key="time",
                exception_formatter=(
                    structlog.dev.plain_traceback if users else _traceback_without_users
                ),
            ),
        ]
    )
    return ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
        processors=[*shared, ProcessorFormatter.remove_processors_meta, *rendered],
    )


def _tidy(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Time, level and event first; the event's text on one line (libraries log whole tables)."""
    text = str(event.pop("event", ""))
    if "\n" in text:
        text = " | ".join(line.strip() for line in text.splitlines() if line.strip())
    return {"time": event.pop("time"), "level": event.pop("level"), "event": text, **event}


def _hide_users(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No user's id in any text of the event, nor under the name of one."""
    for name, value in event.items():
        if name == "user":
            event[name] = f"#{hashed(str(value))}"
        elif isinstance(value, str):
            event[name] = without_users(value)
    return event


def _traceback_without_users(sio: TextIO, exc_info: Any) -> None:
    written = io.StringIO()
    structlog.dev.plain_traceback(written, exc_info)
    sio.write(without_users(written.getvalue()))
