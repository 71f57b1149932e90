"""What a test's process logs, as a pytest plugin."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from io import StringIO

import pytest

from infra.settings import LogSettings
from infra.telemetry import configure_logging


@pytest.fixture
def logged() -> Iterator[StringIO]:
    """The process's log lines, as JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    lines = StringIO()
    configure_logging(LogSettings(format="json"), lines)
    yield lines
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
