"""Processes that start with everything imported, as a pytest plugin.

Importing what a worker needs takes a second, and with torch five; a test with processes would pay
that for each of them. `warm` starts them as forks of a server that has imported it all, once for
the session. In everything else they are like freshly started ones: their functions and arguments
are pickled, and they share no memory with the test.
"""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.context import ForkServerContext
from typing import Final

import pytest

IMPORTED: Final = (
    "extractor.systems.encode",
    "lifelong.experiments.runner",
    "models.bundle",
    "models.training",
    "onnxruntime",
    "streaming.worker",
    "tests.streaming.running",
    "torch._dynamo",  # imported by the first optimizer of a process
)


def pytest_configure() -> None:
    """Have all processes of the tests hear SIGHUP: under nohup they would ignore it, as they do
    what their parents did.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """The context of `multiprocessing` that starts them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context
