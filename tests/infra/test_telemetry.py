import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import pytest

from infra.settings import LogSettings
from infra.telemetry import configure_logging, get_logger, hashed, without_users


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    for name in ("faust", "aiokafka", "uvicorn.access", "httpx", "httpcore", "mode", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def logged(level: str = "INFO") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(LogSettings(level=level, format="json"), stream)
    return stream


def only(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert isinstance(event, dict)
    return event


def test_an_event_is_one_json_object_a_line() -> None:
    stream = logged()
    get_logger("streaming.worker").info("batch stored", events=4000)
    event = only(stream)
    assert datetime.fromisoformat(str(event.pop("time"))).utcoffset() is not None
    assert event == {
        "level": "info",
        "event": "batch stored",
        "events": 4000,
        "logger": "streaming.worker",
    }


def test_libraries_pass_through_the_same_formatter() -> None:
    stream = logged()
    logging.getLogger("some.library").info("listening on %s", 8080)
    assert only(stream)["event"] == "listening on 8080"


def test_an_exception_stays_on_its_line() -> None:
    stream = logged()
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        get_logger("x").exception("failed")
    assert "ValueError: first\nsecond" in str(only(stream)["exception"])


def test_a_library_that_logs_a_table_gets_one_line() -> None:
    stream = logged()
    logging.getLogger("faust.app").error("topics\n  a\n  b\n")
    assert only(stream)["event"] == "topics | a | b"


def test_talkative_libraries_are_heard_from_warnings_on() -> None:
    stream = logged()
    logging.getLogger("aiokafka.consumer").info("heartbeat")
    logging.getLogger("aiokafka.consumer").warning("heartbeat failed")
    assert only(stream)["event"] == "heartbeat failed"


def test_debug_hears_everything() -> None:
    stream = logged("DEBUG")
    logging.getLogger("aiokafka.consumer").debug("heartbeat")
    assert only(stream)["event"] == "heartbeat"


def test_what_is_below_the_level_is_not_logged() -> None:
    stream = logged("ERROR")
    get_logger("x").warning("no")
    assert not stream.getvalue()


def test_handlers_of_libraries_are_replaced() -> None:
    own = io.StringIO()
    library = logging.getLogger("some.library")
    library.addHandler(logging.StreamHandler(own))
    library.propagate = False
    stream = logged()
    library.warning("hello")
    assert not own.getvalue()
    assert only(stream)["event"] == "hello"


def test_warnings_are_logged() -> None:
    stream = logged()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("careful", stacklevel=1)
    assert "careful" in str(only(stream)["event"])


def test_what_json_does_not_know_becomes_text() -> None:
    stream = logged()
    get_logger("x").info("e", where=io)
    assert "module 'io'" in str(only(stream)["where"])


def test_auto_is_for_people_on_a_terminal() -> None:
    stream = Terminal()
    configure_logging(LogSettings(), stream)
    get_logger("x").info("ready", port=1)
    assert "ready" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_auto_is_json_elsewhere() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    get_logger("x").info("ready")
    assert only(stream)["event"] == "ready"


def test_bound_values_stay_with_the_logger() -> None:
    stream = logged()
    get_logger("x").bind(partition=3).info("assigned")
    assert only(stream)["partition"] == 3


def test_users_are_told_by_digits_alone() -> None:
    stream = logged()
    log = get_logger("streaming.schedule")
    log.warning("user not reclustered", user="ann", error="the record of user 'ann' is truncated")
    event = only(stream)
    assert event["user"] == "#49915e0d"
    assert event["error"] == "the record of user #49915e0d is truncated"


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_name_no_users(form: Literal["json", "console"]) -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format=form), stream)
    try:
        raise ValueError('user "it\'s me" is gone')
    except ValueError:
        get_logger("x").exception("failed", what="user 'it is me'")
    text = stream.getvalue()
    assert "ValueError: user #" in text
    assert "it is me" not in text


def test_an_id_that_was_cut_off_is_hidden_too() -> None:
    assert without_users("the record of user 'a very lo") == "the record of user #?"


@pytest.mark.parametrize("user", ["a'b", 'a"b', "a'\"b", "a\\b", "ü", "\n"])
def test_any_id_is_hidden(user: str) -> None:
    assert without_users(f"of user {user!r} here") == f"of user #{hashed(user)} here"


def test_users_are_named_where_that_is_asked_for() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format="json", users=True), stream)
    get_logger("x").warning("odd", user="ann", error="of user 'ann'")
    event = only(stream)
    assert (event["user"], event["error"]) == ("ann", "of user 'ann'")
