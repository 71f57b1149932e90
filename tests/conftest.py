"""What every test stands on."""

from __future__ import annotations

import importlib.util
import os
import signal

import pytest

# Fixtures that start a real Kafka; several packages' tests use them.
pytest_plugins = [
    name for name in ("tests.kafka_fixture",) if importlib.util.find_spec(name) is not None
]


def require(condition: object, what: str) -> None:
    """Go on only if the machine has ``what``: without it a test skips, and under CI it fails.

    A check that quietly stops running is worse than none.
    """
    if condition:
        return
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"CI must have {what}", pytrace=False)
    pytest.skip(f"needs {what}")


def pytest_configure() -> None:
    """Keep the settings of whoever runs the tests out of them, and the runtime quiet."""
    for name in [name for name in os.environ if name.startswith("LIFELONG_")]:
        del os.environ[name]
    # What a shell starts in the background ignores interrupts, and so would all that we start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Some tests load onnxruntime themselves, past `models.bundle.make_session`.
    # Torch's threads spin while they wait, at the cost of whatever else runs (`lifelong.cli`).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
