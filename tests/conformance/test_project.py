"""The project's own files: pins, the example settings, and what goes into the wheel."""

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from infra.settings import example_toml
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def pins(lock: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE)
    return {normal(name): version for name, version in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    for requirement in re.split(r"(?<!\\)\n", lock.read_text().strip()):
        assert re.match(r"[A-Za-z0-9_.-]+==\S+ .*--hash=sha256:", requirement, re.DOTALL)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_no_registry_is_named(lock: Path) -> None:
    assert not re.search(
        r"://|^\s*-|--(extra-)?index|find-links", lock.read_text().replace("\n    --hash", "")
    )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_pins_agree_with_the_widest_set(lock: Path) -> None:
    widest = pins(ROOT / "requirements/dev.txt")
    assert {name: version for name, version in pins(lock).items() if name in widest}.items() <= (
        widest.items()
    )


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock, wanted in {
        "serve": project["dependencies"],
        "train": project["dependencies"] + extras["train"],
        "bench": project["dependencies"] + extras["bench"],
        "dev": project["dependencies"] + extras["train"] + extras["bench"] + extras["dev"],
    }.items():
        names = {normal(re.split(r"[<>=~!\[ ]", one)[0]) for one in wanted}
        assert names <= pins(ROOT / f"requirements/{lock}.txt").keys()


def test_serving_is_small() -> None:
    assert not {"torch", "onnx", "scikit-learn", "quixstreams"} & (
        pins(ROOT / "requirements/serve.txt").keys()
    )


def test_the_example_file_shows_the_settings_as_they_are() -> None:
    assert (ROOT / "lifelong.example.toml").read_text() == example_toml(), (
        "write it again: python -m infra.settings > lifelong.example.toml"
    )


def test_the_wheel_has_the_packages_the_data_and_nothing_else(tmp_path: Path) -> None:
    require(importlib.util.find_spec("hatchling"), "hatchling (make test installs it)")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"infra", "streaming", "extractor", "scorer", "models", "lifelong"}
    assert "lifelong/data/online-retail-2.parquet" in names
    assert "lifelong/data/bundle/manifest.json" in names
