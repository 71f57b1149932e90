"""`lifelong fetch`, from a server on this machine."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.errors import BundleCorrupt, BundleMissing, SettingsError
from lifelong.fetching import run_fetch
from lifelong.shipped import BUNDLE
from models.bundle import verify


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with archives."""
    folder = tmp_path_factory.mktemp("served")
    for name, inside in (("in-a-folder", "bundle"), ("at-the-root", ".")):
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as tar:
            tar.add(BUNDLE, inside)
    (folder / "no-archive").write_text("nothing")
    with tarfile.open(folder / "outside.tar", "w") as tar:
        tar.add(BUNDLE / "manifest.json", "../../manifest.json")
    return folder


@pytest.fixture(scope="module")
def url(served: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["in-a-folder", "at-the-root"])
def test_a_bundle_is_put_in_its_place(url: str, served: Path, name: str, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "current"

    result = run_fetch(f"{url}/{name}.tar.gz", target, sha256(served / f"{name}.tar.gz"))

    assert result["name"] == verify(target).manifest.name
    assert [one.name for one in target.parent.iterdir()] == ["current"]


def test_what_was_there_is_replaced(url: str, served: Path, tmp_path: Path) -> None:
    target = tmp_path / "current"
    shutil.copytree(served, target)

    run_fetch(f"{url}/at-the-root.tar.gz", target, sha256(served / "at-the-root.tar.gz"))

    verify(target)
    assert [one.name for one in tmp_path.iterdir()] == ["current"]


@pytest.mark.parametrize(
    ("name", "known", "error", "said"),
    [
        ("at-the-root.tar.gz", False, BundleCorrupt, "it is another file"),
        ("no-archive", True, BundleCorrupt, "cannot be unpacked"),
        ("outside.tar", True, BundleCorrupt, "cannot be unpacked"),
        ("nowhere.tar", False, BundleMissing, "404"),
    ],
)
def test_what_is_wrong_leaves_what_was_there(
    url: str,
    served: Path,
    name: str,
    *,
    known: bool,
    error: type[Exception],
    said: str,
    tmp_path: Path,
) -> None:
    target = tmp_path / "current"
    target.mkdir()
    checksum = sha256(served / name) if known else "0" * 64

    with pytest.raises(error, match=said):
        run_fetch(f"{url}/{name}", target, checksum)

    assert [one.name for one in tmp_path.iterdir()] == ["current"]
    assert list(target.iterdir()) == []


def test_only_addresses_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no address"):
        run_fetch("file:///etc/passwd", tmp_path / "bundle", "0" * 64)
