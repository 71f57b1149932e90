"""What every test stands on."""

from __future__ import annotations

import os
import signal

import pytest

pytest_plugins = [
    "tests.skips",
    "tests.logged",
    "tests.kafka_fixture",
    "tests.schema_registry",
    "tests.warm_processes",
    "tests.quick_exports",
]


def require(condition: object, what: str) -> None:
    """Go on only if the machine has ``what``: without it a test skips, which CI takes for a failure
    (`tests.skips`).
    """
    if not condition:
        pytest.skip(f"needs {what}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs faults on order where AEROSPIKE_HOST names a real server, with none."""
    if "AEROSPIKE_HOST" not in os.environ:
        return
    faults = [item for item in items if "double" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=faults)
    items[:] = [item for item in items if item not in faults]


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
