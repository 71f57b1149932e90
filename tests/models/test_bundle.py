from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from infra.behaviors import item_key
from infra.errors import BundleCorrupt, BundleError, BundleIncompatible, BundleMissing
from infra.files import write_directory
from models import bundle as bundles
from models.bundle import (
    EMBEDDINGS,
    FILES,
    GOLDEN,
    LOOKUP,
    MANIFEST,
    PROJECTION,
    SCORER,
    SCORER_INPUTS,
    SEQUENCES,
    TITLES,
    Bundle,
    Manifest,
    check_golden,
    table_file,
    verify,
)
from models.bundle.manifest import sealed
from tests.bundles import tiny_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECTED = table_file("projected")
SERVED_FILES = (*FILES, PROJECTED, PROJECTION, SEQUENCES)
"""Files of a bundle that the services serve."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def path(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def edit_manifest(
    path: Path, change: Callable[[dict[str, object]], object], *, seal: bool = True
) -> None:
    """Change a manifest, its checksum too, where that is not what is tried."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    if seal:
        with contextlib.suppress(msgspec.ValidationError):
            manifest["checksum"] = sealed(msgspec.convert(manifest, Manifest)).checksum
    (path / MANIFEST).write_text(json.dumps(manifest))


def refused(path: Path, error: type[BundleError], *words: str) -> None:
    with pytest.raises(error) as caught:
        Bundle.load(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, str(path)):
        assert word in message


def replace_file(path: Path, name: str, array: np.ndarray) -> None:
    """Put another array into a file, and its checksum into the manifest."""
    np.save(path / name, array)
    data = (path / name).read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(path, lambda manifest: manifest["files"].update({name: entry}))  # type: ignore[attr-defined]


def test_a_bundle_comes_back_as_it_was_saved(path: Path) -> None:
    bundle = Bundle.load(path)
    assert bundle.manifest.n_items == 50
    assert bundle.item_ids[:2] == ["", "item-1"]
    assert bundle.titles[1] == "Item 1"
    assert bundle.embeddings.shape == (51, 8)
    assert bundle.tables["projected"].shape == (51, 4)
    assert bundle.popularity[0] == 0
    assert bundle.popularity.sum() == pytest.approx(1e6, rel=1e-4)
    assert len(bundle.digest) == 16
    assert bundle.version == bundle.digest.hex()


def test_rows_follow_item_keys_and_are_zero_for_strangers(path: Path) -> None:
    bundle = Bundle.load(path)
    keys = [item_key("item-50"), item_key("nobody"), item_key("item-1"), 0, 2**64 - 1]
    assert bundle.rows(np.array(keys, np.uint64)).tolist() == [50, 0, 1, 0, 0]


def test_the_tables_cannot_be_written(path: Path) -> None:
    bundle = Bundle.load(path)
    for table in (bundle.embeddings, *bundle.tables.values(), bundle.popularity):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


def test_the_same_content_has_the_same_digest(path: Path, tmp_path: Path) -> None:
    again = tiny_bundle(tmp_path / "again")
    other = tiny_bundle(tmp_path / "other", seed=1)
    assert Bundle.load(again).digest == Bundle.load(path).digest
    assert Bundle.load(other).digest != Bundle.load(path).digest


def test_a_session_takes_the_documented_inputs(path: Path) -> None:
    session = Bundle.load(path).scorer_session()
    assert {node.name for node in session.get_inputs()} == set(SCORER_INPUTS["encode"])


def test_nothing_there_is_missing(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", BundleMissing, "lifelong export")


def test_an_empty_directory_is_missing(tmp_path: Path) -> None:
    refused(tmp_path, BundleMissing)


def test_a_file_in_the_place_of_a_bundle_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "bundle"
    file.write_text("")
    refused(file, BundleMissing)


def test_a_directory_without_manifest_is_corrupt(path: Path) -> None:
    (path / MANIFEST).unlink()
    refused(path, BundleCorrupt, MANIFEST)


@pytest.mark.parametrize("name", SERVED_FILES)
def test_an_absent_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    refused(path, BundleCorrupt, name, "absent")


@pytest.mark.parametrize("name", SERVED_FILES)
def test_a_truncated_file_is_named(path: Path, name: str) -> None:
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])
    refused(path, BundleCorrupt, name, "bytes instead of")


@pytest.mark.parametrize("name", SERVED_FILES)
def test_a_flipped_bit_is_named(path: Path, name: str) -> None:
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    refused(path, BundleCorrupt, name, "sha256")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "a/b", "", ".hidden", "a\nb"])
def test_a_name_that_leads_out_of_the_directory_is_refused(path: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size": 0}
    edit_manifest(path, lambda manifest: manifest["files"].update({name: entry}))  # type: ignore[attr-defined]
    refused(path, BundleCorrupt, MANIFEST, "is no name of a file beside it")


def test_a_table_whose_name_leads_out_is_refused(path: Path) -> None:
    def rename(manifest: dict[str, object]) -> None:
        tables = manifest["tables"]
        assert isinstance(tables, dict)
        tables["x/../../outside"] = tables.pop("projected")

    edit_manifest(path, rename)
    refused(path, BundleCorrupt, MANIFEST, "is no name of a file beside it")


@pytest.mark.parametrize("name", [SCORER, GOLDEN])
def test_a_file_that_is_too_large_to_be_read_is_refused_unread(path: Path, name: str) -> None:
    size = (path / name).stat().st_size
    with pytest.raises(BundleCorrupt, match=r"bundle\.max_read_bytes") as caught:
        Bundle.load(path, max_read_bytes=size - 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(BundleCorrupt, match=r"bundle\.max_read_bytes"):
        verify(path, max_read_bytes=size - 1)


def test_a_pipe_in_the_place_of_a_file_is_refused(path: Path) -> None:
    (path / SCORER).unlink()
    os.mkfifo(path / SCORER)
    refused(path, BundleCorrupt, SCORER, "is no file")


def test_a_graph_with_weights_in_another_file_is_refused(path: Path) -> None:
    graph = onnx.load(path / SCORER)
    tensor = graph.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(path / EMBEDDINGS))
    data = graph.SerializeToString()
    (path / SCORER).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(path, lambda manifest: manifest["files"].update({SCORER: entry}))  # type: ignore[attr-defined]
    refused(path, BundleIncompatible, SCORER, "names another file")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1}'])
def test_a_manifest_that_is_none_is_refused_by_name(path: Path, content: bytes) -> None:
    (path / MANIFEST).write_bytes(content)
    refused(path, BundleError, MANIFEST)


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3", None])
def test_another_format_is_incompatible(path: Path, version: object) -> None:
    edit_manifest(path, lambda manifest: manifest.update(format=version))
    refused(path, BundleIncompatible, MANIFEST, "format")


@pytest.mark.parametrize("name", ["user_features", "cross_features"])
def test_features_that_are_not_computed_here_are_incompatible(path: Path, name: str) -> None:
    edit_manifest(path, lambda manifest: manifest.update({name: ["shoe size"]}))
    refused(path, BundleIncompatible, name, "shoe size")


@pytest.mark.parametrize(
    ("field", "file"),
    [("n_items", "embeddings.npy"), ("d", "embeddings.npy"), ("c", "c"), ("u", "u")],
)
def test_dimensions_that_do_not_fit_are_incompatible(path: Path, field: str, file: str) -> None:
    edit_manifest(path, lambda manifest: manifest.update({field: 7}))
    refused(path, BundleIncompatible, file)


def test_a_manifest_of_before_there_were_rates_is_sealed_as_it_was(path: Path) -> None:
    """Its bytes as they were written then: without fields that came since, and its checksum over
    those.
    """
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["rates"], manifest["reference"]
    bare = msgspec.json.encode({**manifest, "checksum": ""})
    manifest["checksum"] = hashlib.sha256(bare).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert Bundle.load(path).rates is None


def test_rates_that_somebody_changed_are_noticed(path: Path) -> None:
    rates = {"positive": ["like"], "base": 0.5, "item_prior": 20.0, "user_prior": 10.0}
    edit_manifest(path, lambda manifest: manifest.update(rates=rates), seal=False)
    refused(path, BundleCorrupt, "does not match its own checksum")


@pytest.mark.parametrize("section", ["user", "behavior"])
def test_what_no_service_has_is_refused(path: Path, section: str) -> None:
    edit_manifest(path, lambda manifest: manifest["schema"].update({section: ["age"]}))  # type: ignore[attr-defined]
    refused(path, BundleIncompatible, f"schema.{section} = age")


def test_a_file_that_the_manifest_does_not_list_is_refused(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.update(files={}))
    refused(path, BundleCorrupt, FILES[0])


def test_a_graph_that_disagrees_with_the_golden_requests_is_refused(
    pristine: Path, path: Path, tmp_path: Path
) -> None:
    """Checksums only say that nothing happened since the export."""
    stranger = tiny_bundle(tmp_path / "stranger", seed=5)
    data = (stranger / SCORER).read_bytes()
    (path / SCORER).write_bytes(data)
    entry = msgspec.to_builtins(Bundle.load(stranger).manifest.files[SCORER])
    edit_manifest(path, lambda manifest: manifest["files"].update({SCORER: entry}))  # type: ignore[attr-defined]
    refused(path, BundleIncompatible, SCORER, "golden")


@pytest.mark.parametrize("row", [0, 1, 50])
def test_an_item_table_that_the_graph_does_not_give_is_refused(path: Path, row: int) -> None:
    table = np.load(path / PROJECTED)
    table[row] += 0.01
    replace_file(path, PROJECTED, table)
    refused(path, BundleIncompatible, PROJECTED, f"not what {PROJECTION} makes of {EMBEDDINGS}")


@pytest.mark.parametrize("change", [lambda table: table[:, 1:], lambda table: table.astype("f8")])
def test_an_item_table_that_the_manifest_does_not_describe_is_refused(
    path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    replace_file(path, PROJECTED, change(np.load(path / PROJECTED)).copy())
    refused(path, BundleIncompatible, PROJECTED, "asks for float32 of (51, 4)")


def test_a_lookup_of_other_items_is_refused(path: Path) -> None:
    slots = np.load(path / LOOKUP)
    slots["row"][slots["row"] == 3] = 4
    replace_file(path, LOOKUP, slots)
    refused(path, BundleIncompatible, LOOKUP, "finds other items")


def test_an_array_that_is_none_is_corrupt(path: Path) -> None:
    (path / EMBEDDINGS).write_bytes(b"no array")
    entry = {"sha256": hashlib.sha256(b"no array").hexdigest(), "size": 8}
    edit_manifest(path, lambda manifest: manifest["files"].update({EMBEDDINGS: entry}))  # type: ignore[attr-defined]
    refused(path, BundleCorrupt, EMBEDDINGS, "cannot be decoded")


def test_arrays_are_mapped_so_that_processes_share_them(path: Path) -> None:
    bundle = Bundle.load(path)
    catalog = bundle.catalog
    texts = (catalog.item_ids, catalog.titles)
    arrays: list[Any] = [array for text in texts for array in (text.utf8, text.offsets)]
    arrays += [catalog.popularity, catalog.slots, bundle.embeddings, *bundle.tables.values()]
    for array in arrays:
        owner: Any = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap.mmap)


def test_a_bundle_that_is_replaced_stays_as_it_was_for_who_has_it(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "bundle")
    first, before = Bundle.load(path), np.load(path / EMBEDDINGS)
    tiny_bundle(path, seed=1)
    assert np.array_equal(first.embeddings, before)
    assert not np.array_equal(Bundle.load(path).embeddings, before)
    assert first.titles[50] == "Item 50"


def test_a_bundle_that_is_as_it_was_is_verified(path: Path) -> None:
    manifest, golden = verify(path)
    assert manifest == Bundle.load(path).manifest
    assert golden.requests == len(Bundle.load(path).golden)
    assert golden.max_difference < 1e-5


def test_a_bundle_that_no_service_serves_is_verified_too(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.update(system="oracle", user_features=["size"]))
    assert verify(path).manifest.system == "oracle"


def test_verifying_nothing_finds_it_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="there is no bundle"):
        verify(tmp_path / "nowhere")


@pytest.mark.parametrize("name", SERVED_FILES)
def test_verifying_names_a_file_that_was_altered(path: Path, name: str) -> None:
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(BundleCorrupt, match=f"{name} does not match its sha256"):
        verify(path)


@pytest.mark.parametrize("name", SERVED_FILES)
def test_verifying_misses_a_file_that_every_bundle_has(path: Path, name: str) -> None:
    edit_manifest(path, lambda manifest: manifest["files"].pop(name))  # type: ignore[attr-defined]
    with pytest.raises(BundleCorrupt, match=f"lists no {name}"):
        verify(path)


def test_a_scorer_that_is_no_graph_cannot_be_run(path: Path) -> None:
    (path / SCORER).write_bytes(b"no graph")
    entry = {"sha256": hashlib.sha256(b"no graph").hexdigest(), "size": 8}
    edit_manifest(path, lambda manifest: manifest["files"].update({SCORER: entry}))  # type: ignore[attr-defined]
    with pytest.raises(BundleIncompatible, match=f"{SCORER} cannot be run") as caught:
        verify(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda ctrs: ctrs[:-1], lambda ctrs: ctrs * np.nan])
def test_ctrs_that_cannot_be_compared_do_not_agree(
    path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    bundle = Bundle.load(path)
    first, *others = bundle.golden
    expected = bundles.Tensor.of(change(first.ctr.array()))
    golden = [msgspec.structs.replace(first, ctr=expected), *others]
    with pytest.raises(BundleIncompatible, match=rf"golden\.msgpack \({first.name}\)"):
        check_golden(path / SCORER, bundle.scorer_session(), golden)


def test_without_verification_contents_are_taken_on_trust(path: Path) -> None:
    data = bytearray((path / TITLES).read_bytes())
    data[data.index(b"Item 7")] ^= 1
    (path / TITLES).write_bytes(data)
    assert Bundle.load(path, verify=False).titles[7] == "Htem 7"


def test_saving_replaces_a_bundle_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "bundle")
    first = Bundle.load(path).digest
    tiny_bundle(path, seed=1)
    assert Bundle.load(path).digest != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "bundle")
    first = Bundle.load(path).digest
    with pytest.raises(FileNotFoundError):
        write_directory(path, {"fine": b"", "no/such/folder": b""})
    assert Bundle.load(path).digest == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("name", "value"), [("offline", None), ("L", 65), ("metrics", {"auc": 0.99})]
)
def test_a_manifest_that_somebody_changed_is_noticed(path: Path, name: str, value: object) -> None:
    edit_manifest(path, lambda manifest: manifest.update({name: value}), seal=False)
    refused(path, BundleCorrupt, MANIFEST, "checksum")


@pytest.mark.parametrize("name", ["", "../up", "two words", "line\nbreak", "a" * 101])
def test_a_name_that_no_path_bears_is_refused(path: Path, name: str) -> None:
    edit_manifest(path, lambda manifest: manifest.update({"name": name}))
    refused(path, BundleIncompatible, "letters, digits")


def test_a_bundle_may_be_pinned_by_the_beginning_of_its_version(path: Path) -> None:
    version = Bundle.load(path).version
    assert Bundle.load(path, pinned=version[:8]).version == version
    with pytest.raises(BundleIncompatible, match=f"is version {version}, bundle.version asks"):
        Bundle.load(path, pinned="0123456789abcdef")


def test_the_shipped_bundle_is_whole() -> None:
    bundle = Bundle.load(REPOSITORY / "lifelong" / "data" / "bundle")
    metrics = bundle.manifest.metrics
    assert bundle.manifest.d == 32
    assert metrics["auc"] > metrics["auc_repeat"] + 0.1
    assert metrics["hit10"] > metrics["hit10_repeat"] + 0.1


def test_actions_of_the_training_data_come_back_and_are_sealed(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.update(actions=["view", "buy"]))
    assert Bundle.load(path).manifest.actions == ("view", "buy")
    edit_manifest(path, lambda manifest: manifest.update(actions=["buy", "view"]), seal=False)
    refused(path, BundleCorrupt, MANIFEST, "checksum")


def test_a_manifest_of_before_there_were_actions_is_whole(path: Path) -> None:
    edit_manifest(path, lambda manifest: manifest.pop("actions"), seal=False)
    assert Bundle.load(path).manifest.actions == ()


def test_the_documented_files_are_the_written_ones(path: Path) -> None:
    assert {entry.name for entry in path.iterdir()} == {MANIFEST, *SERVED_FILES}
    assert int(bundles.FORMAT) == 3


def test_the_runtime_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    """In a process of its own, since the runtime reads its environment only once."""
    (tmp_path / "temporary").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORT_")}
    script = (
        "import sys, models.reference.serving, scorer.ranking; from models.bundle import Bundle;"
        " assert 'onnxruntime' not in sys.modules, 'loaded before it is quiet';"
        f" Bundle.load({str(path)!r}).scorer_session()"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=environment | {"TMPDIR": str(tmp_path / "temporary")},
        check=True,
        timeout=60,
    )
    assert list((tmp_path / "temporary").iterdir()) == []
