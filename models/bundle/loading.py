"""A bundle read, checked and ready to look items up; and how one is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from infra.arrays import F32, I32, U64, Array
from infra.behaviors import item_key
from infra.errors import BundleCorrupt, BundleIncompatible, one_line
from infra.files import write_directory
from models.features import CROSS_FEATURES, USER_FEATURES
from models.kernels.lookup import fill, find

if TYPE_CHECKING:
    import onnxruntime

from models.bundle.golden import (
    GoldenChecks,
    GoldenRequest,
    cannot_be_run,
    check_golden,
    make_session,
)
from models.bundle.manifest import (
    EMBEDDINGS,
    FILES,
    GOLDEN,
    MANIFEST,
    PROJECTION,
    SCORER,
    SERVED,
    TABLES,
    VOCABULARY,
    FileEntry,
    Manifest,
    check_name,
    decode_manifest,
    read_manifest,
    sealed,
)

SCORER_INPUTS: Final = (
    "interests",
    "sizes",
    "recent",
    "recent_mask",
    "user",
    "candidates",
    "cross",
)
"""Inputs of scorer.onnx, all float32: interests[K', d], sizes[K'] (behaviors of each),
recent[M', d] (newest last, M' <= M), recent_mask[M'], user[u], candidates[B, d], cross[B, c]. K'
and M' are at least 1; rows of mask 0 are ignored, and their content with them as long as it is
finite.
"""


class Vocabulary(msgspec.Struct, frozen=True):
    """vocabulary.msgpack: one entry an item, row 0 ("") for unknown ones."""

    item_ids: list[str]
    titles: list[str]
    popularity: list[float]


class Verified(NamedTuple):
    """What `verify` finds: a bundle of any method, whole, whose graph does as it did."""

    manifest: Manifest
    golden: GoldenChecks


def verify(path: Path | str) -> Verified:
    """Check a bundle of any method: the sha256 of every file, and its golden requests repeated.

    `Bundle.load` does the same, and checks what a service needs besides.

    Raises:
        BundleMissing: there is no bundle at ``path``.
        BundleCorrupt: a file is absent, truncated, altered or unreadable.
        BundleIncompatible: the format is another one, scorer.onnx cannot be run, or its CTRs are
            others.
    """
    path = Path(path)
    manifest = decode_manifest(path, read_manifest(path))
    names = {VOCABULARY, EMBEDDINGS, SCORER, GOLDEN} | manifest.files.keys()
    content = {name: _read_file(path, name, manifest, verify=True) for name in sorted(names)}
    golden = _decode(path, GOLDEN, content[GOLDEN], list[GoldenRequest])
    try:
        session = make_session(content[SCORER])
    except Exception as error:  # onnxruntime raises its own and plain exceptions alike
        raise cannot_be_run(path / SCORER, error) from error
    return Verified(manifest, check_golden(path / SCORER, session, golden))


@dataclass(frozen=True)
class Bundle:
    """A loaded, verified bundle. Immutable, and safe to share between threads."""

    path: Path
    manifest: Manifest
    digest: bytes
    """16 bytes that name the bundle's content; an interest state carries those it was made with."""
    item_ids: list[str]
    """n + 1 ids; row 0 is "" and stands for unknown items."""
    titles: list[str]
    """n + 1 titles, "" where there is none."""
    popularity: F32
    """f32[n + 1]: training behaviors of the item per million; 0 for unknown items."""
    embeddings: F32
    """f32[n + 1, d], read-only."""
    projected: F32
    """f32[n + 1, m], read-only: h = W_h^T e of every row (Eq. 4)."""
    scorer_model: bytes
    """scorer.onnx; inputs as in SCORER_INPUTS."""
    golden: list[GoldenRequest]

    @classmethod
    def load(cls, path: Path | str, verify: bool = True, *, pinned: str | None = None) -> Bundle:
        """Read a bundle, check it, and project its item table.

        Args:
            path: the bundle's directory.
            verify: also hash every file and repeat the golden requests, as `verify` does. Only to
                be turned off for a directory that this machine has just verified.
            pinned: the version (`Bundle.version`) that it must be, or the beginning of it.

        Raises:
            BundleMissing: there is no bundle at ``path``.
            BundleCorrupt: a file is absent, truncated, altered or unreadable.
            BundleIncompatible: format, features or shapes are not those of this version.
        """
        path = Path(path)
        raw = read_manifest(path)
        manifest = decode_manifest(path, raw)
        digest = hashlib.sha256(raw).digest()[:16]
        if pinned is not None and not digest.hex().startswith(pinned):
            raise BundleIncompatible(
                f"{path} is version {digest.hex()}, bundle.version asks for {pinned}; correct one"
                " of the two"
            )
        _check_served(path / MANIFEST, manifest)
        content = {name: _read_file(path, name, manifest, verify) for name in FILES}
        vocabulary = _decode(path, VOCABULARY, content[VOCABULARY], Vocabulary)
        embeddings = _decode_embeddings(path, content[EMBEDDINGS])
        _check_shapes(path, manifest, vocabulary, embeddings)
        bundle = cls(
            path=path,
            manifest=manifest,
            digest=digest,
            item_ids=vocabulary.item_ids,
            titles=vocabulary.titles,
            popularity=_frozen(np.array(vocabulary.popularity, np.float32)),
            embeddings=_frozen(embeddings),
            projected=_frozen(_project(path, content[PROJECTION], embeddings, manifest.m)),
            scorer_model=content[SCORER],
            golden=_decode(path, GOLDEN, content[GOLDEN], list[GoldenRequest]),
        )
        if verify:
            check_golden(path / SCORER, bundle.scorer_session(), bundle.golden)
        return bundle

    @property
    def version(self) -> str:
        """The digest in hexadecimal, for people and metrics."""
        return self.digest.hex()

    @cached_property
    def _slots(self) -> Array:
        return fill(np.array([item_key(item_id) for item_id in self.item_ids[1:]], np.uint64))[0]

    def rows(self, item_keys: U64) -> I32:
        """The rows of items in this bundle's tables.

        Args:
            item_keys: u64[n], `infra.behaviors.item_key` of the items.

        Returns:
            i32[n]; 0 where the bundle does not know the item.
        """
        return find(self._slots, item_keys)

    def scorer_session(self) -> onnxruntime.InferenceSession:
        """A fresh, warm session of scorer.onnx; make it after a fork, one a process.

        Raises:
            BundleIncompatible: onnxruntime cannot run the graph, or its inputs are others.
        """
        try:
            session = make_session(self.scorer_model)
            names = {node.name for node in session.get_inputs()}
            if names != set(SCORER_INPUTS):
                raise ValueError(f"its inputs are {', '.join(sorted(names))}")
            for request in self.golden:
                session.run(None, request.feed())
        except Exception as error:  # onnxruntime raises its own and plain exceptions alike
            raise cannot_be_run(self.path / SCORER, error) from error
        return session


@dataclass(frozen=True)
class BundleContents:
    """What `save_bundle` writes."""

    manifest: Manifest
    """What the bundle is; its ``files`` are filled in on writing."""
    vocabulary: Vocabulary
    embeddings: F32
    """f32[n + 1, d]."""
    scorer_model: bytes
    golden: Sequence[GoldenRequest]
    projection_model: bytes | None = None
    """The graph over the item table, where the method has one."""
    tables: bytes | None = None
    """tables.npz, where the schema has more than items."""


def save_bundle(contents: BundleContents, path: Path | str) -> Manifest:
    """Write a bundle so that ``path`` never holds half of one; one that is there is replaced.

    Returns:
        The manifest as written, with the checksums.
    """
    path = Path(path)
    embeddings = BytesIO()
    np.save(embeddings, np.ascontiguousarray(contents.embeddings, "<f4"), allow_pickle=False)
    files = {
        VOCABULARY: msgspec.msgpack.encode(contents.vocabulary),
        EMBEDDINGS: embeddings.getvalue(),
        SCORER: contents.scorer_model,
        GOLDEN: msgspec.msgpack.encode(list(contents.golden)),
    }
    if contents.projection_model is not None:
        files[PROJECTION] = contents.projection_model
    if contents.tables is not None:
        files[TABLES] = contents.tables
    entries = {
        name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()
    }
    manifest = sealed(msgspec.structs.replace(contents.manifest, files=entries))
    check_name(path / MANIFEST, manifest.name)
    encoded = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2)
    write_directory(path, {**files, MANIFEST: encoded + b"\n"})
    return manifest


def _check_served(file: Path, manifest: Manifest) -> None:
    if manifest.system != SERVED:
        raise BundleIncompatible(
            f"{file} is of system {manifest.system!r}, the services serve {SERVED!r}; "
            "export a run of that"
        )
    _check_features(file, "user_features", manifest.user_features, USER_FEATURES)
    _check_features(file, "cross_features", manifest.cross_features, CROSS_FEATURES)


def _check_features(
    file: Path, name: str, found: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    if found != expected:
        raise BundleIncompatible(
            f"{file}: {name} are {', '.join(found)}, this version computes "
            f"{', '.join(expected)}; train again"
        )


def _read_file(path: Path, name: str, manifest: Manifest, verify: bool) -> bytes:
    file = path / name
    entry = manifest.files.get(name)
    if entry is None:
        raise BundleCorrupt(f"{path / MANIFEST} lists no {name}; export the bundle again")
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise BundleCorrupt(f"{file} is absent; export or copy the bundle again") from error
    except OSError as error:
        raise BundleCorrupt(f"{file} cannot be read: {one_line(error)}") from error
    if len(data) != entry.size:
        raise BundleCorrupt(
            f"{file} has {len(data)} bytes instead of {entry.size}; export or copy the bundle again"
        )
    if verify and hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleCorrupt(
            f"{file} does not match its sha256 in {MANIFEST}; export or copy the bundle again"
        )
    return data


def _decode(path: Path, name: str, data: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.DecodeError as error:  # of which ValidationError is one
        raise BundleCorrupt(f"{path / name} cannot be decoded: {one_line(error)}") from error


def _decode_embeddings(path: Path, data: bytes) -> F32:
    try:
        table = np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleCorrupt(f"{path / EMBEDDINGS} cannot be decoded: {one_line(error)}") from error
    return np.ascontiguousarray(table, np.float32)


def _check_shapes(path: Path, manifest: Manifest, vocabulary: Vocabulary, embeddings: F32) -> None:
    rows = manifest.n_items + 1
    if embeddings.shape != (rows, manifest.d):
        raise BundleIncompatible(
            f"{path / EMBEDDINGS} has shape {embeddings.shape}, "
            f"{MANIFEST} says {(rows, manifest.d)}; export the bundle again"
        )
    for name, values in _columns(vocabulary):
        if len(values) != rows:
            raise BundleIncompatible(
                f"{path / VOCABULARY} has {len(values)} {name}, {MANIFEST} says {rows}; "
                "export the bundle again"
            )
    clustering = manifest.long_term.get("clustering", "k-means")
    if clustering != "k-means":
        raise BundleIncompatible(
            f"{path / MANIFEST}: the network learned with clustering {clustering!r}, the services "
            "cluster by k-means; train with that"
        )
    seen = [name for name in ("user", "behavior") if manifest.schema.get(name)]
    if seen:
        raise BundleIncompatible(
            f"{path / MANIFEST}: the network sees schema.{seen[0]}, which the services do not "
            "have; train without it"
        )
    for name, given, expected in (
        ("u", manifest.u, len(USER_FEATURES)),
        ("c", manifest.c, len(CROSS_FEATURES)),
    ):
        if given != expected:
            raise BundleIncompatible(
                f"{path / MANIFEST}: {name} is {given}, this version computes {expected}"
            )


def _columns(vocabulary: Vocabulary) -> Iterable[tuple[str, Sequence[object]]]:
    yield "item_ids", vocabulary.item_ids
    yield "titles", vocabulary.titles
    yield "popularity", vocabulary.popularity


def _project(path: Path, model: bytes, embeddings: F32, m: int) -> F32:
    """Project the whole item table once: h does not depend on the user."""
    try:
        (projected,) = make_session(model).run(None, {"embeddings": embeddings})
    except Exception as error:  # onnxruntime raises its own and plain exceptions alike
        raise cannot_be_run(path / PROJECTION, error) from error
    if projected.shape != (len(embeddings), m):
        raise BundleIncompatible(
            f"{path / PROJECTION} gives shape {projected.shape}, "
            f"{MANIFEST} says {(len(embeddings), m)}; export the bundle again"
        )
    return np.ascontiguousarray(projected, np.float32)


def _frozen(array: F32) -> F32:
    array.flags.writeable = False
    return array
