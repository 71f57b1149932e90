"""A running scorer, and the environment with other people's clients that ask it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from infra.settings import BundleSettings, ScorerSettings, Settings, StoreSettings
from tests.conftest import require
from tests.scorer.conftest import add_behavior, bundle_directory
from tests.scorer.running import free_port, running, until_ready

collect_ignore_glob = ["*_client.py"]  # they run where their clients are installed

HERE = Path(__file__).parent
PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"
"""Of the environment that ``make clients`` makes."""

Facts = dict[str, Any]


@pytest.fixture(scope="package")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The settings of a scorer that is ready, with user "u" in its store."""
    require(PYTHON.exists(), "other people's clients (make clients)")
    place = tmp_path_factory.mktemp("scorer")
    settings = Settings(
        store=StoreSettings(url=f"lmdb://{place / 'store'}"),
        bundle=BundleSettings(path=bundle_directory(place)),
        scorer=ScorerSettings(port=free_port(), grpc_port=free_port(), compress_bytes=256),
    )
    add_behavior(settings, "u")
    with running(settings):
        until_ready(settings)
        yield settings


@pytest.fixture(scope="package")
def facts_of(scorer: Settings) -> Callable[[str], Facts]:
    """Runs a client's script against the scorer; what it prints is what the client saw."""

    @cache
    def run(script: str) -> Facts:
        done = subprocess.run(
            [PYTHON, HERE / script, str(scorer.scorer.port), str(scorer.scorer.grpc_port)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        facts: Facts = json.loads(done.stdout.splitlines()[-1])
        return facts

    return run
