"""Skips under CI, as a pytest plugin: there a test or a module that skips has failed.

A check that quietly stops running is worse than none. On any other machine what is missing (Java
and Maven, a device file) skips the tests that need it, and pytest's summary says which.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test, and of the fixtures before it."""
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a module, which may skip as a whole."""
    return _without_skip((yield))


def _without_skip(report: Report) -> Report:
    """The report, a failure where it was a skip and this is CI; an expected failure is no skip."""
    in_ci = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
    if in_ci and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}: under CI nothing may skip"
    return report
