"""The project's own files: pins, the example settings, and what goes into its two distributions."""

import importlib.util
import re
import subprocess
import sys
import tarfile
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


@pytest.mark.parametrize(
    "lock",
    # The clients of others are not installed beside what they are to be tried against.
    [lock for lock in LOCKS if lock.name != "clients.txt"],
    ids=lambda lock: lock.name,
)
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel and of the source distribution, built from this checkout."""
    require(importlib.util.find_spec("hatchling"), "hatchling (make test installs it)")
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def sources(built: Path) -> set[str]:
    """What the source distribution holds, as paths from its top folder."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        return {name.split("/", 1)[1] for name in files.getnames()}


def test_the_wheel_has_the_packages_the_data_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"infra", "streaming", "extractor", "scorer", "models", "lifelong"}
    assert "lifelong/data/online-retail-2.parquet" in names
    for bundle in ("bundle", "sdim-bundle", "twin-bundle"):
        assert f"lifelong/data/{bundle}/manifest.json" in names


def test_the_source_distribution_is_small(built: Path) -> None:
    """8 MB, of which the bundled purchases and bundles are most."""
    (archive,) = built.glob("*.tar.gz")
    assert archive.stat().st_size < 9_000_000


def test_the_source_distribution_has_the_experiments_pages_and_not_their_runs(
    sources: set[str],
) -> None:
    experiments = {Path(name) for name in sources if name.startswith("docs/experiments/")}
    assert Path("docs/experiments/README.md") in experiments
    assert Path("docs/experiments/taobao/encode-table-2.md") in experiments
    assert {path.suffix for path in experiments} == {".md", ".json"}
    assert not [path for path in experiments if "cells" in path.parts]


def test_the_source_distribution_builds_and_tests_itself(sources: set[str]) -> None:
    """All that its build, its `make` targets and its tests read; see pyproject.toml for the tests
    that read what only the repository has.
    """
    read = {
        path.relative_to(ROOT).as_posix()
        for folder in ("tests", "examples", "requirements", "docs/models", "lifelong", "infra")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    read |= {"pyproject.toml", "Makefile", ".ci/run", "lifelong.example.toml", "docs/training.md"}
    read |= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "NOTICE"}
    alone = {"tests/lifelong/experiments/test_committed.py", "tests/test_site.py"}
    assert read - sources <= alone
