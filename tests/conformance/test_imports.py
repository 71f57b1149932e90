"""Importing does nothing, and a serving install gets by without what training needs."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("infra", "streaming", "extractor", "scorer", "lifelong")
OF_EXTRAS = (
    "torch",
    "onnx",
    "onnxscript",
    "sklearn",
    "faiss",
    "quixstreams",
    "opentelemetry",
)

# Commands that say which extra they need.
OF_AN_EXTRA = (
    "lifelong.bench",
    "lifelong.evaluate.run",
    "lifelong.experiments",
    "lifelong.figure",
    "lifelong.learning",
)

MODULES = [
    "models.bundle",
    "models.features",
    *(
        module.name
        for module in pkgutil.walk_packages([str(ROOT)])
        if module.name.split(".")[0] in SERVICES and not module.name.startswith(OF_AN_EXTRA)
    ),
]

IMPORT_BLOCKED = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is not in a serving install", name=name)

sys.meta_path.insert(0, Blocker())
for name in {modules!r}:
    importlib.import_module(name)
"""

IMPORT_WATCHED = """
import importlib, os, sys, threading

WATCHED = ("socket.bind", "socket.connect", "socket.sendto", "subprocess.Popen", "os.fork")
OURS = {ours!r}
seen = []

def ours(frame):
    # Of the code that is not Python's own, the innermost: a library's doings are the library's.
    while frame is not None:
        name = frame.f_code.co_filename
        if "site-packages" in name:
            return False
        if name.startswith(OURS):
            return True
        frame = frame.f_back
    return False

def watch(event, args):
    if event.startswith(WATCHED) and ours(sys._getframe(1)):
        seen.append((event, args))

sys.addaudithook(watch)
for name in {modules!r}:
    importlib.import_module(name)
threads = [thread.name for thread in threading.enumerate()]
assert not seen, seen
assert threads == ["MainThread"], threads
"""


def run(program: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_walk_finds_every_room() -> None:
    assert {name.split(".")[0] for name in MODULES} == {*SERVICES, "models"}


def test_serving_needs_nothing_of_training() -> None:
    done = run(IMPORT_BLOCKED.format(blocked=OF_EXTRAS, modules=MODULES))
    assert done.returncode == 0, done.stderr


def test_importing_opens_no_socket_and_starts_no_thread_or_process() -> None:
    done = run(IMPORT_WATCHED.format(ours=str(ROOT), modules=MODULES))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "import socket; socket.create_server(('127.0.0.1', 0))",
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "import subprocess; subprocess.run(['true'])",
        "import torch",
    ],
)
def test_the_watch_and_the_block_see_what_they_are_for(tmp_path: Path, line: str) -> None:
    (tmp_path / "misbehaving.py").write_text(line)
    program = IMPORT_BLOCKED if "torch" in line else IMPORT_WATCHED
    filled = program.format(blocked=("torch",), ours=str(tmp_path), modules=["misbehaving"])
    assert run(filled, cwd=tmp_path).returncode != 0


@pytest.mark.parametrize("module", ["models.bundle", "infra.settings", "lifelong.cli"])
def test_importing_alone_works(module: str) -> None:
    done = run(f"import {module}")
    assert done.returncode == 0, done.stderr
