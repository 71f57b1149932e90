"""A test that skips fails under CI, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CALLED = "import pytest\ndef test(): pytest.skip('no Java')"
MARKED = "import pytest\n@pytest.mark.skip(reason='no Java')\ndef test(): pass"
FIXTURE = (
    "import pytest\n@pytest.fixture\ndef broker(): pytest.skip('no Java')\ndef test(broker): pass"
)
MODULE = "import pytest\npytest.skip('no Java', allow_module_level=True)"
EXPECTED = "import pytest\n@pytest.mark.xfail\ndef test(): assert False"


def run(folder: Path, test: str, ci: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(test)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.skips", "-p", "no:cacheprovider"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("test", [CALLED, MARKED, FIXTURE, MODULE])
def test_under_ci_a_skip_is_a_failure_that_says_what_is_missing(tmp_path: Path, test: str) -> None:
    done = run(tmp_path, test, "true")
    assert done.returncode != 0
    assert "no Java: under CI nothing may skip" in done.stdout


def test_elsewhere_it_skips(tmp_path: Path) -> None:
    done = run(tmp_path, FIXTURE, "")
    assert done.returncode == 0
    assert "1 skipped" in done.stdout


def test_an_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    assert run(tmp_path, EXPECTED, "true").returncode == 0
