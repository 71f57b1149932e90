"""A bundle read, checked and mapped, ready to look items up; and how one is written."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zipfile import BadZipFile

import msgspec
import numpy as np

from infra.arrays import F32, I32, U8, U16, U64, Array
from infra.behaviors import ActionNames, item_key
from infra.errors import BundleCorrupt, BundleIncompatible, one_line
from infra.files import write_directory
from infra.settings import MAX_READ_BYTES
from infra.store import Behaviors
from models.bundle.catalog import Catalog, Texts
from models.bundle.combinations import ACTION, DWELL, MOST, Combinations
from models.bundle.signing import check_signature
from models.features import age_bucket, ages_s, dwell_bucket, feature_names
from models.kernels.lookup import SLOT

if TYPE_CHECKING:
    import onnxruntime

from models.bundle.golden import (
    GoldenChecks,
    GoldenRequest,
    GoldenSequence,
    cannot_be_run,
    check_golden,
    make_session,
)
from models.bundle.manifest import (
    ATTRIBUTES,
    EMBEDDINGS,
    GOLDEN,
    ITEM_IDS,
    LOOKUP,
    MANIFEST,
    POPULARITY,
    PROJECTION,
    RATES,
    REFERENCE_ACTIONS,
    REFERENCE_KEYS,
    REFERENCE_QUERIES,
    SCORER,
    SEQUENCES,
    TITLES,
    FileEntry,
    Manifest,
    check_name,
    decode_manifest,
    digest_of,
    offsets_of,
    read_manifest,
    sealed,
    table_file,
)

LONG_TERM: Final = "long_term"
"""Input of a scorer.onnx whose services compute the long-term part of the user's behaviors: its
vector for each candidate, f32[B, w]; TWIN's heads side by side, which the graph mixes (Eq. 8)."""

COMMON_INPUTS: Final = ("recent", "recent_mask", "user", "candidates", "cross")
"""Inputs of every scorer.onnx that is served, all float32: recent[M', d] (newest last, M' <= M),
recent_mask[M'], user[u], candidates[B, d], cross[B, c]. M' is at least 1; rows of mask 0 are
ignored, and their content with them as long as it is finite."""

SCORER_INPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "encode": ("interests", "sizes", *COMMON_INPUTS),
    "sdim": (LONG_TERM, *COMMON_INPUTS),
    "twin": (LONG_TERM, *COMMON_INPUTS),
}
"""Inputs of scorer.onnx by system, all float32. ENCODE's: interests[K', d] and sizes[K'], the
behaviors of each, 0 for none; K' is at least 1. Of the first ones, `Manifest.state` says the
shapes."""

OF_FEATURE: Final = "behavior."
"""Of attributes.npz, before the name of a behavior feature: embeddings of its values."""

CODES: Final = 256
"""Codes of actions that a stored behavior may hold; 0: none that was known."""

HASHED_AT_ONCE: Final = 4
"""Files whose sha256 is taken at once: most bytes are in two or three of them."""

FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
"""Names of a bundle's files: none leads out of its directory."""

SAMPLED: Final = 1024
"""Rows, spread over the catalog, of which lookup and item tables are checked at load."""

TABLE_TOLERANCE: Final = 1e-4
"""Largest difference of an item table from projection.onnx, beside values of about 1."""

PAGE: Final = 4096
"""Bytes that are mapped together, at least."""


class Verified(NamedTuple):
    """What `verify` finds: a bundle of any method, whole, whose graph does as it did."""

    manifest: Manifest
    golden: GoldenChecks


def verify(path: Path | str, max_read_bytes: int = MAX_READ_BYTES) -> Verified:
    """Check a bundle of any method: the sha256 of every file, and its golden requests repeated.

    `Bundle.load` does the same, and checks what a service needs besides.

    Args:
        max_read_bytes: largest file that is read into memory.

    Raises:
        BundleMissing: there is no bundle at ``path``.
        BundleCorrupt: a file is absent, truncated, altered or unreadable.
        BundleIncompatible: the format is another one, scorer.onnx cannot be run, or its CTRs are
            others.
    """
    path = Path(path)
    manifest = decode_manifest(path, read_manifest(path, max_read_bytes))
    _check_files(path, manifest, max_read_bytes, verify=True)
    golden = _decode(path / GOLDEN, list[GoldenRequest])
    try:
        session = make_session((path / SCORER).read_bytes())
    except Exception as error:  # onnxruntime raises its own and plain exceptions alike
        raise cannot_be_run(path / SCORER, error) from error
    return Verified(manifest, check_golden(path / SCORER, session, golden, manifest.corrected_for))


class Reference(NamedTuple):
    """The attention of a run of DIN-L on the bundle's items: its scores are queries times keys."""

    queries: F32
    """f32[n + 1, d] of candidates, the metric and the scale in them."""
    keys: F32
    """f32[n + 1, d] of behaviors."""
    actions: F32 | None
    """f32[A + 1, d]: what is added to the keys of behaviors by their actions; None: nothing."""


@dataclass(frozen=True)
class Bundle:
    """A loaded, verified bundle. Immutable, and safe to share between threads.

    Its arrays are mapped files: processes that load the same directory share their memory, and a
    directory that is replaced (`save_bundle`) leaves them what they have.
    """

    path: Path
    manifest: Manifest
    digest: bytes
    """16 bytes that name the bundle's content; an interest state carries those it was made with."""
    catalog: Catalog
    embeddings: F32
    """f32[n + 1, d], read-only."""
    tables: Mapping[str, Array]
    """The item tables by name, [n + 1, width] each, read-only."""
    scorer_model: bytes
    """scorer.onnx; its inputs are in SCORER_INPUTS."""
    golden: list[GoldenRequest]
    sequences: list[GoldenSequence] = field(default_factory=list)
    """What the services must answer; none where they do not serve the method."""
    rates: F32 | None = None
    """f32[n + 1], read-only: the items' rates; None: the network sees none."""
    features: F32 | None = None
    """f32[F, d], read-only: embeddings of what the network sees of a behavior beside its item, a
    row for each of `combinations`; None: it sees nothing."""
    codes: U8 = field(default_factory=lambda: np.arange(CODES, dtype=np.uint8))
    """u8[256]: the row of each stored code; see `declaring`."""
    reference: Reference | None = None
    """Read-only: the attention that live measures take for the truth; None: the bundle has none."""

    @classmethod
    def load(
        cls,
        path: Path | str,
        verify: bool = True,
        *,
        pinned: str | None = None,
        max_read_bytes: int = MAX_READ_BYTES,
        public_key: Path | None = None,
    ) -> Bundle:
        """Read a bundle and check it; whether it can be served, `extractor.systems` knows.

        Args:
            path: the bundle's directory.
            verify: also hash every file, repeat the golden requests as `verify` does, and hold
                rows of lookup and item tables against what they are made from. Only to be turned
                off for a directory that this machine has just verified.
            pinned: the version (`Bundle.version`) that it must be, or the beginning of it.
            max_read_bytes: largest file that is read into memory; others are mapped.
            public_key: file of keys of which one must have signed it; None: none need have.

        Raises:
            BundleMissing: there is no bundle at ``path``.
            BundleUntrusted: none of the keys has signed it.
            BundleCorrupt: a file is absent, truncated, altered or unreadable.
            BundleIncompatible: format, features or shapes are not those of this version.
        """
        path = Path(path)
        raw = read_manifest(path, max_read_bytes)
        if public_key is not None:
            check_signature(path, raw, public_key)
        manifest = decode_manifest(path, raw)
        digest = digest_of(raw)
        if pinned is not None and not digest.hex().startswith(pinned):
            raise BundleIncompatible(
                f"{path} is version {digest.hex()}, bundle.version asks for {pinned}; correct one"
                " of the two"
            )
        _check_network(path / MANIFEST, manifest)
        _check_files(path, manifest, max_read_bytes, verify=verify)
        rows = manifest.n_items + 1
        bundle = cls(
            path=path,
            manifest=manifest,
            digest=digest,
            embeddings=_mapped(path / EMBEDDINGS, "float32", (rows, manifest.d)),
            catalog=_read_catalog(path, rows),
            tables={
                name: _mapped(path / table_file(name), table.dtype, (rows, table.width))
                for name, table in manifest.tables.items()
            },
            scorer_model=(path / SCORER).read_bytes(),
            golden=_decode(path / GOLDEN, list[GoldenRequest]),
            sequences=_decode(path / SEQUENCES, list[GoldenSequence]) if manifest.offline else [],
            rates=_mapped(path / RATES, np.float32, (rows,)) if manifest.rates else None,
            features=_read_features(path / ATTRIBUTES, manifest, max_read_bytes)
            if manifest.combinations.heights
            else None,
            codes=_codes(manifest, manifest.actions),
            reference=_read_reference(path, manifest),
        )
        if verify:
            _check_lookup(bundle)
            _check_tables(bundle)
            bundle.scorer_session()
        return bundle

    @property
    def version(self) -> str:
        """The digest in hexadecimal, for people and metrics."""
        return self.digest.hex()

    @property
    def item_ids(self) -> Texts:
        """n + 1 ids; row 0 is "" and stands for unknown items."""
        return self.catalog.item_ids

    @property
    def titles(self) -> Texts:
        """n + 1 titles, "" where there is none."""
        return self.catalog.titles

    @property
    def popularity(self) -> F32:
        """f32[n + 1], read-only: training behaviors of the item per million."""
        return self.catalog.popularity

    def rows(self, item_keys: U64) -> I32:
        """The rows of items in this bundle's tables, i32[n]; 0 where it does not know one.

        Args:
            item_keys: u64[n], `infra.behaviors.item_key` of the items.
        """
        return self.catalog.rows(item_keys)

    def action_rows(self, codes: U8) -> U8:
        """The rows of stored actions in this bundle's tables, u8[n]; 0 where it does not know one.

        Args:
            codes: u8[n], as of `infra.behaviors.BEHAVIOR`.
        """
        return self.codes[codes]

    def feature_rows(self, behaviors: Behaviors, now_ms: int) -> U16:
        """The rows of behaviors in `features`, u16[n], of a bundle that has some.

        Args:
            behaviors: BEHAVIOR[n].
            now_ms: the moment for which to score; it tells ages, which only bundles see that store
                nothing.
        """
        values: dict[str, Array] = {}
        for name in self.combinations.heights:
            if name == ACTION:
                values[name] = self.action_rows(behaviors["action"])
            elif name == DWELL:
                values[name] = dwell_bucket((behaviors["dwell"] / 1000).astype(np.float32))
            else:
                values[name] = age_bucket(ages_s(behaviors["time"] // 1000, now_ms // 1000))
        return self.combinations.rows(values)

    @cached_property
    def combinations(self) -> Combinations:
        """What the network sees of a behavior beside its item, numbered."""
        return self.manifest.combinations

    def declaring(self, declared: ActionNames) -> Bundle:
        """The bundle where actions are stored under the codes of ``declared``; as it is loaded,
        under the places of their names in its own list.
        """
        return replace(self, codes=_codes(self.manifest, declared.names))

    def warm(self) -> None:
        """Bring all that requests read into this process's memory: a page that it has not seen yet
        costs half a microsecond, one an item that is looked up.
        """
        self.rows(np.zeros(1, np.uint64))
        rates = () if self.rates is None else (self.rates,)
        read = (*rates, self.catalog.slots, self.popularity, self.embeddings, *self.tables.values())
        for array in read:
            array.reshape(-1).view(np.uint8)[::PAGE].max(initial=0)

    def scorer_session(self) -> onnxruntime.InferenceSession:
        """A session of scorer.onnx, warm from the golden requests, which it answers as it should;
        make it after a fork, one a process.

        Raises:
            BundleIncompatible: onnxruntime cannot run the graph, or its CTRs are others.
        """
        file = self.path / SCORER
        try:
            session = make_session(self.scorer_model)
        except Exception as error:  # onnxruntime raises its own and plain exceptions alike
            raise cannot_be_run(file, error) from error
        check_golden(file, session, self.golden, self.manifest.corrected_for)
        return session


@dataclass(frozen=True)
class BundleContents:
    """What `save_bundle` writes."""

    manifest: Manifest
    """What the bundle is; its ``files`` are filled in on writing."""
    catalog: Catalog
    embeddings: F32
    """f32[n + 1, d]."""
    scorer_model: bytes
    golden: Sequence[GoldenRequest]
    projection_model: bytes | None = None
    """The graph over the item table, where the method has one."""
    tables: Mapping[str, Array] = field(default_factory=dict)
    """The item tables that the manifest lists."""
    sequences: Sequence[GoldenSequence] = ()
    attributes: bytes | None = None
    """attributes.npz, where the schema has more than items."""
    rates: F32 | None = None
    """f32[n + 1]: the items' rates, where the network sees them."""
    reference: Reference | None = None
    """What the manifest's entry of the same name tells of."""


def save_bundle(contents: BundleContents, path: Path | str) -> Manifest:
    """Write a bundle so that ``path`` never holds half of one; one that is there is replaced.

    Returns:
        The manifest as written, with the checksums.
    """
    path = Path(path)
    catalog = contents.catalog
    arrays: dict[str, Array] = {
        ITEM_IDS: catalog.item_ids.utf8,
        offsets_of(ITEM_IDS): catalog.item_ids.offsets,
        TITLES: catalog.titles.utf8,
        offsets_of(TITLES): catalog.titles.offsets,
        POPULARITY: catalog.popularity,
        LOOKUP: catalog.slots,
        EMBEDDINGS: np.asarray(contents.embeddings, np.float32),
        **{table_file(name): table for name, table in contents.tables.items()},
    }
    if contents.rates is not None:
        arrays[RATES] = np.asarray(contents.rates, np.float32)
    if (reference := contents.reference) is not None:
        arrays |= {REFERENCE_QUERIES: reference.queries, REFERENCE_KEYS: reference.keys}
        if reference.actions is not None:
            arrays[REFERENCE_ACTIONS] = reference.actions
    files: dict[str, bytes | memoryview] = {name: _npy(array) for name, array in arrays.items()}
    files |= {
        SCORER: contents.scorer_model,
        GOLDEN: msgspec.msgpack.encode(list(contents.golden)),
    }
    if contents.manifest.offline is not None:
        files[SEQUENCES] = msgspec.msgpack.encode(list(contents.sequences))
    if contents.projection_model is not None:
        files[PROJECTION] = contents.projection_model
    if contents.attributes is not None:
        files[ATTRIBUTES] = contents.attributes
    entries = {
        name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()
    }
    manifest = sealed(msgspec.structs.replace(contents.manifest, files=entries))
    check_name(path / MANIFEST, manifest.name)
    encoded = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2)
    write_directory(path, {**files, MANIFEST: encoded + b"\n"})
    return manifest


def _npy(array: Array) -> memoryview:
    file = BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    np.save(file, little, allow_pickle=False)
    return file.getbuffer()


def _check_network(file: Path, manifest: Manifest) -> None:
    """Refuse a network that sees what no service has."""
    user, cross = feature_names(manifest.rates)
    for name, found, expected in (
        ("user_features", manifest.user_features, user),
        ("cross_features", manifest.cross_features, cross),
    ):
        if found != expected:
            raise BundleIncompatible(
                f"{file}: {name} are {', '.join(found)}, this version computes "
                f"{', '.join(expected)}; train again"
            )
    for name, lacking in manifest.unserved.items():
        raise BundleIncompatible(
            f"{file}: the network sees schema.{name} = {', '.join(lacking)}, which the services do"
            " not have; train without it"
        )
    seen = manifest.combinations
    if seen.number > MOST:
        raise BundleIncompatible(
            f"{file}: the network sees {seen.number:,} combinations of {', '.join(seen.heights)},"
            f" the services have {MOST:,} at most; train without one of them"
        )
    for name, given, computed in (("u", manifest.u, len(user)), ("c", manifest.c, len(cross))):
        if given != computed:
            raise BundleIncompatible(f"{file}: {name} is {given}, this version computes {computed}")


def _codes(manifest: Manifest, names: Sequence[str]) -> U8:
    """u8[256]: the bundle's row of each action by its place in ``names``, from 1."""
    rows = {name: row for row, name in enumerate(manifest.actions, 1)}
    codes = np.zeros(CODES, np.uint8)
    codes[1 : len(names) + 1] = [rows.get(name, 0) for name in names]
    return codes


def _read_features(file: Path, manifest: Manifest, max_bytes: int) -> F32:
    tables = {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for name in manifest.combinations.heights:
                if arrays.zip.getinfo(f"{OF_FEATURE}{name}.npy").file_size > max_bytes:
                    raise BundleCorrupt(f"{file} holds {_larger(max_bytes)}")
                tables[name] = np.asarray(arrays[OF_FEATURE + name], np.float32)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise BundleCorrupt(f"{file} cannot be decoded: {one_line(error)}") from error
    for name, height in manifest.combinations.heights.items():
        if tables[name].shape != (height, manifest.d):
            raise BundleIncompatible(
                f"{file} has embeddings {tables[name].shape} of {name}, and {MANIFEST} says that"
                f" there are {height}; export the bundle again"
            )
    features = manifest.combinations.summed(tables)
    features.flags.writeable = False
    return features


def _read_reference(path: Path, manifest: Manifest) -> Reference | None:
    entry = manifest.reference
    if entry is None:
        return None
    rows, actions = manifest.n_items + 1, len(manifest.actions) + 1
    return Reference(
        queries=_mapped(path / REFERENCE_QUERIES, np.float32, (rows, entry.d)),
        keys=_mapped(path / REFERENCE_KEYS, np.float32, (rows, entry.d)),
        actions=_mapped(path / REFERENCE_ACTIONS, np.float32, (actions, entry.d))
        if entry.actions
        else None,
    )


def _check_files(path: Path, manifest: Manifest, max_read_bytes: int, *, verify: bool) -> None:
    names = dict.fromkeys((*manifest.needed, *sorted(manifest.files)))
    for name in names:
        if not FILE_NAME.fullmatch(name):
            raise BundleCorrupt(
                f"{path / MANIFEST}: {name[:64]!r} is no name of a file beside it; export again"
            )

    def check(name: str) -> None:
        file = path / name
        _check_size(file, manifest.files.get(name), None if mapped(name) else max_read_bytes)
        if verify:
            _check_sum(file, manifest.files[name])

    # Hashing releases the interpreter's lock.
    with ThreadPoolExecutor(HASHED_AT_ONCE, "sha256") as pool:
        list(pool.map(check, names))


def _check_size(file: Path, entry: FileEntry | None, at_most: int | None) -> None:
    """Refuse a file that is not as large as it should be, before anything of it is read."""
    if entry is None:
        raise BundleCorrupt(
            f"{file.with_name(MANIFEST)} lists no {file.name}; export the bundle again"
        )
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise BundleCorrupt(f"{file} is absent; export or copy the bundle again") from error
    except OSError as error:
        raise BundleCorrupt(f"{file} cannot be read: {one_line(error)}") from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would keep its reader waiting
        raise BundleCorrupt(f"{file} is no file; export or copy the bundle again")
    if found.st_size != entry.size:
        raise BundleCorrupt(
            f"{file} has {found.st_size} bytes instead of {entry.size}; export or copy the bundle"
            " again"
        )
    if at_most is not None and entry.size > at_most:
        raise BundleCorrupt(f"{file} has {_larger(at_most)}")


def _larger(max_bytes: int) -> str:
    return (
        f"more than {max_bytes} bytes, which bundle.max_read_bytes allows; raise it if that is"
        " right"
    )


def _check_sum(file: Path, entry: FileEntry) -> None:
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BundleCorrupt(f"{file} cannot be read: {one_line(error)}") from error
    if found != entry.sha256:
        raise BundleCorrupt(
            f"{file} does not match its sha256 in {MANIFEST}; export or copy the bundle again"
        )


def mapped(name: str) -> bool:
    """Whether a file of a bundle is mapped, not read: its size costs no memory."""
    return name.endswith(".npy")


def _decode(file: Path, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=kind)
    except msgspec.DecodeError as error:  # of which ValidationError is one
        raise BundleCorrupt(f"{file} cannot be decoded: {one_line(error)}") from error


def _mapped(file: Path, dtype: Any, shape: tuple[int | None, ...]) -> Any:
    """The array of a file, read where it lies, read-only; None: an axis of any length."""
    try:
        array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        expected = np.dtype(dtype).newbyteorder("<")
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise BundleCorrupt(f"{file} cannot be decoded: {one_line(error)}") from error
    fits = len(array.shape) == len(shape) and all(
        size in {None, found} for size, found in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != expected or not array.flags.c_contiguous:
        raise BundleIncompatible(
            f"{file} has {array.dtype} of shape {array.shape}, {MANIFEST} asks for"
            f" {np.dtype(dtype)} of {shape}; export the bundle again"
        )
    return array


def _read_catalog(path: Path, rows: int) -> Catalog:
    return Catalog(
        item_ids=_read_texts(path, ITEM_IDS, rows),
        titles=_read_texts(path, TITLES, rows),
        popularity=_mapped(path / POPULARITY, np.float32, (rows,)),
        slots=_mapped(path / LOOKUP, SLOT, (None,)),
    )


def _read_texts(path: Path, name: str, rows: int) -> Texts:
    offsets = _mapped(path / offsets_of(name), np.int64, (rows + 1,))
    return Texts(_mapped(path / name, np.uint8, (int(offsets[-1]),)), offsets)


def _sample(rows: int) -> I32:
    """Rows spread over all, both ends among them."""
    return np.unique(np.linspace(0, rows - 1, SAMPLED).astype(np.int32))


def _check_lookup(bundle: Bundle) -> None:
    rows = _sample(len(bundle.item_ids))[1:]  # nobody's key finds the unknown
    keys = np.array([item_key(bundle.item_ids[row]) for row in rows.tolist()], np.uint64)
    if not np.array_equal(bundle.rows(keys), rows):
        raise BundleIncompatible(
            f"{bundle.path / LOOKUP} finds other items than {ITEM_IDS} has; export the bundle again"
        )


def _check_tables(bundle: Bundle) -> None:
    """Hold rows of the item tables against what projection.onnx makes of their embeddings."""
    if not bundle.tables:
        return
    file = bundle.path / PROJECTION
    rows = _sample(len(bundle.embeddings))
    names = list(bundle.tables)
    try:
        session = make_session(file.read_bytes())
        computed = session.run(names, {"embeddings": bundle.embeddings[rows]})
    except Exception as error:  # onnxruntime raises its own and plain exceptions alike
        raise cannot_be_run(file, error) from error
    for name, values in zip(names, computed, strict=True):
        table = bundle.tables[name][rows]
        # Numbers of buckets have no neighborhood.
        tolerance = TABLE_TOLERANCE if table.dtype.kind == "f" else 0.0
        same = table.shape == values.shape and np.allclose(
            table, values, rtol=tolerance, atol=tolerance
        )
        if not same:
            raise BundleIncompatible(
                f"{bundle.path / table_file(name)} is not what {PROJECTION} makes of {EMBEDDINGS};"
                " export the bundle again"
            )
