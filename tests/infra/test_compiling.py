"""Compiled code on disk is that of the source as it is now, in whichever file it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.kernels import attention, clustering, interests

KERNEL = """
from infra.compiling import kernel
"""


def test_a_kernel_knows_the_files_of_those_it_calls() -> None:
    files = {module.__file__ for module in (attention, clustering, interests)}
    assert interests.interests_kernel.files == files  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("called", "use"),
    [
        (f"{KERNEL}@kernel\ndef inner():\n    return ANSWER\n", "inner()"),
        ("inner = (ANSWER, 7)\n", "inner[0]"),
    ],
    ids=["kernel", "constants"],
)
def test_a_change_elsewhere_of_what_a_kernel_uses_is_noticed(
    tmp_path: Path, called: str, use: str
) -> None:
    calling = tmp_path / "calling.py"
    calling.write_text(
        f"{KERNEL}from called import inner\n@kernel\ndef outer():\n    return {use}\n"
    )
    program = "from calling import outer; print(outer())"
    for answer in ("1", "2"):
        (tmp_path / "called.py").write_text(called.replace("ANSWER", answer))
        assert run(program, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == answer


def test_where_nothing_can_be_written_kernels_are_compiled_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "calling.py").write_text(f"{KERNEL}@kernel\ndef outer():\n    return 7\n")
    (tmp_path / "__pycache__").touch()  # no folder, and none can be made
    program = (
        "from calling import outer; from infra.compiling import UNKEPT; print(outer(), len(UNKEPT))"
    )
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"}
    assert run(program, tmp_path, **nowhere) == "7 1"


def run(program: str, directory: Path, **environment: str) -> str:
    """What a program prints that imports from a directory, and from here."""
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(directory), str(Path.cwd()))),
            # Python takes a source of the same size and second for the same.
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()
