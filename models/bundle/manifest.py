"""manifest.json: what a bundle is, with the checksums of every file and of itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from infra.errors import BundleCorrupt, BundleIncompatible, BundleMissing, one_line
from infra.settings import MAX_READ_BYTES
from models.bundle.combinations import ACTION, AGE, DWELL, Combinations
from models.features import CROSS_FEATURES, USER_FEATURES, Rates

Count = Annotated[int, msgspec.Meta(ge=1)]

FORMAT: Final = 3
"""Version of the directory's format. Raised when an older reader would misread it."""

MANIFEST: Final = "manifest.json"

ITEM_IDS: Final = "item_ids.npy"
TITLES: Final = "titles.npy"
"""UTF-8, end to end; where each text begins stands in a file beside it (`offsets_of`)."""

POPULARITY: Final = "popularity.npy"

RATES: Final = "rates.npy"

LOOKUP: Final = "lookup.npy"

EMBEDDINGS: Final = "embeddings.npy"

PROJECTION: Final = "projection.onnx"

SCORER: Final = "scorer.onnx"

GOLDEN: Final = "golden.msgpack"

SEQUENCES: Final = "golden-sequences.msgpack"

ATTRIBUTES: Final = "attributes.npz"

REFERENCE_QUERIES: Final = "reference-queries.npy"
REFERENCE_KEYS: Final = "reference-keys.npy"
REFERENCE_ACTIONS: Final = "reference-actions.npy"
"""Of the attention that RI takes for the truth (`ReferenceEntry`)."""


def offsets_of(texts: str) -> str:
    """The file of where the texts of another file begin."""
    return texts.replace(".npy", "-offsets.npy")


def table_file(name: str) -> str:
    """The file of an item table."""
    return f"table-{name}.npy"


FILES: Final = (
    ITEM_IDS,
    offsets_of(ITEM_IDS),
    TITLES,
    offsets_of(TITLES),
    POPULARITY,
    LOOKUP,
    EMBEDDINGS,
    SCORER,
    GOLDEN,
)
"""Files of every bundle; `Manifest.needed` adds those of its method."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a bundle may be called: it becomes part of paths, of URLs and of log lines."""


class FileEntry(msgspec.Struct, frozen=True):
    """What a file of the bundle must be."""

    sha256: str
    size: int
    """Size in bytes."""


class StateTensor(msgspec.Struct, frozen=True):
    """A tensor of a user's long-term state."""

    dtype: str
    """Element type, as numpy names it: float32, float16, uint32, int64."""
    shape: tuple[int | str, ...]
    """-1, or the axis's name, where it depends on the user's behaviors or on the candidates."""


RECENT_FEATURES: Final = "recent_actions"
"""Stored of a user where the network sees features of behaviors: those of the newest behaviors that
the state covers, as rows of `Combinations`. Named as when actions were the only ones."""

RATED: Final = "rated"
"""Stored of a user where the network sees rates: positive behaviors, and behaviors that count,
among the last L that the state covers."""


class TableEntry(msgspec.Struct, frozen=True):
    """An item table: what the method computes of each item by itself, as projection.onnx gives it.

    Its file holds [n + 1, width], a row an item as the embeddings have them.
    """

    dtype: str
    """Element type, as numpy names it."""
    width: int


class ReferenceEntry(msgspec.Struct, frozen=True):
    """A run of DIN-L whose attention RI takes for the truth (ENCODE, section 4.6.1)."""

    name: str
    """The run's."""
    d: int
    """Width of its embeddings."""
    actions: bool
    """Whether it tells behaviors apart by their actions."""


class EncodeOffline(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="system", tag="encode"
):
    """ENCODE's offline stage; letters are the paper's."""

    m: Count
    """Width of a projected embedding, in the item table "projected" (Eq. 4)."""
    K: Count
    """Clusters, hence interests, of a user, at most."""
    T: Count
    """Iterations of k-means, at most."""
    scale: float
    """What the cosine is multiplied with in Eq. 8, whichever way beta came about."""


class SDIMOffline(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="system", tag="sdim"
):
    """SDIM's buckets, G groups of 2^tau each; letters are the paper's.

    >>> SDIMOffline(m=48, tau=3, normalization="l2").groups
    16
    """

    m: Count
    """Hash functions."""
    tau: Annotated[int, msgspec.Meta(ge=0, le=16)]
    """Hash functions that make one signature; 0: none, one bucket for all behaviors."""
    normalization: Literal["l2", "mean"]
    """What a bucket's sum is divided by: its length (Eq. 9), or its number of behaviors."""

    @property
    def groups(self) -> int:
        """G, the signatures of an item."""
        return self.m // self.tau if self.tau else 1

    @property
    def buckets(self) -> int:
        """Buckets of all groups together."""
        return self.groups << self.tau

    @property
    def signature(self) -> str:
        """Element type of a signature."""
        return "uint8" if self.tau <= 8 else "uint16"


class TWINOffline(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,  # those that came later: a manifest without them keeps its checksum
    tag_field="system",
    tag="twin",
):
    """TWIN's search and attention over item tables."""

    k: Count
    """Behaviors that the search lets through."""
    heads: Count
    """Heads of the attention (Eq. 8)."""
    d_k: Count
    """Width of a query, key and value in each head."""
    biases: tuple[tuple[float, ...], ...] = ()
    """What an action adds to the relevance of a behavior in each head (Eq. 5), a row for each of
    `Manifest.actions`, row 0 for unknown ones; none where the attention does not see them."""
    dwell_biases: tuple[tuple[float, ...], ...] = ()
    """What a dwell time adds, a row for each bucket of `models.features.dwell_bucket`; none where
    the attention does not see them."""
    age_biases: tuple[tuple[float, ...], ...] = ()
    """What an age adds, a row for each bucket of `models.features.age_bucket`; none where the
    attention does not see them."""

    @property
    def width(self) -> int:
        """Width of those of all heads."""
        return self.heads * self.d_k

    def seeing(self, cross: Mapping[str, tuple[tuple[float, ...], ...]]) -> TWINOffline:
        """The same with the biases of cross features, as `cross` gives them."""
        return msgspec.structs.replace(
            self,
            biases=cross.get(ACTION, ()),
            dwell_biases=cross.get(DWELL, ()),
            age_biases=cross.get(AGE, ()),
        )

    @property
    def cross(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """The biases of each cross feature that the attention sees, by name."""
        of_each = {ACTION: self.biases, DWELL: self.dwell_biases, AGE: self.age_biases}
        return {name: biases for name, biases in of_each.items() if biases}


Offline = EncodeOffline | SDIMOffline | TWINOffline
"""Settings of a system's offline stage, by which the services run it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """manifest.json. Letters are the papers': L behaviors, M recent behaviors."""

    format: int = FORMAT
    system: str
    """The method: the tag of its configuration."""
    name: str
    n_items: int
    """Items of the catalog, the unknown one (row 0) not counted."""
    d: int
    """Width of an embedding."""
    L: int
    """Behaviors that the offline stage sees, at most."""
    M: int
    """Recent behaviors that are attended to one by one, at most."""
    u: int
    """User features (`models.features.USER_FEATURES`)."""
    c: int
    """Cross features (`models.features.CROSS_FEATURES`)."""
    rates: Rates | None = None
    """What makes the rates of items and users; None: the network sees none."""
    offline: Offline | None = None
    """What the services need to know of its offline stage; None: they do not serve it."""
    tables: dict[str, TableEntry] = {}
    """The item tables, by name; each is an output of projection.onnx."""
    reference: ReferenceEntry | None = None
    """Whose attention the bundle holds beside its own, for live measures; None: nobody's."""
    long_term: dict[str, Any] = {}
    """Settings of the method, as it was trained with them."""
    state: dict[str, StateTensor] = {}
    """What scorer.onnx is fed of a user's long-term state."""
    stored: dict[str, StateTensor] = {}
    """What a service stores of a user besides what all systems store; axes that depend on the
    user have names (`extractor.state.Layout`)."""
    schema: dict[str, Any] = {}
    """What the network sees (`models.data.schema.Schema`)."""
    actions: tuple[str, ...] = ()
    """Names of the actions that its training data tell apart, in the order of their codes, from 1
    (0: any other). Whether the network sees them, ``schema`` says."""
    user_features: tuple[str, ...] = USER_FEATURES
    cross_features: tuple[str, ...] = CROSS_FEATURES
    sampling_rate: float | msgspec.UnsetType = msgspec.UNSET
    """Share of the negatives that training saw; scorer.onnx corrects its CTRs for it. Unset in
    bundles of earlier versions, whose CTRs are those of training. See `corrected_for`."""
    seed: int = 0
    training: dict[str, Any] = {}
    """The settings it was trained with."""
    data: dict[str, Any] = {}
    """What it was trained on."""
    metrics: dict[str, float] = {}
    """What the evaluation on held-out training data gave."""
    files: dict[str, FileEntry] = {}
    checksum: str = ""
    """sha256 of all the rest: a scale or an L that somebody changed is noticed."""

    @property
    def corrected_for(self) -> float:
        """The `sampling_rate` that the CTRs are corrected for; 1: none."""
        return 1.0 if self.sampling_rate is msgspec.UNSET else self.sampling_rate

    @property
    def combinations(self) -> Combinations:
        """What the network sees of a behavior beside its item."""
        return Combinations.of(tuple(self.schema.get("behavior", ())), len(self.actions))

    @property
    def needs_actions(self) -> bool:
        """Whether the network sees actions of behaviors, or rates of them."""
        return ACTION in self.combinations.heights or self.rates is not None

    @property
    def unserved(self) -> dict[str, tuple[str, ...]]:
        """What the network sees and no service has, by section of the schema; nothing, if all."""
        lacking = {
            "user": tuple(self.schema.get("user", ())),
            "behavior": unserved_features(
                self.combinations.heights, stored=self.offline is None or bool(self.stored)
            ),
        }
        return {name: names for name, names in lacking.items() if names}

    def of_features(self) -> dict[str, StateTensor]:
        """What is stored of the features of a user's behaviors, whichever the system is."""
        tensors = {}
        if self.combinations.heights:
            tensors[RECENT_FEATURES] = StateTensor(self.combinations.dtype, ("recent",))
        if self.rates is not None:
            tensors[RATED] = StateTensor("uint32", (2,))
        return tensors

    @property
    def needed(self) -> tuple[str, ...]:
        """The files without which it is no bundle."""
        tables = tuple(map(table_file, self.tables))
        return (
            *FILES,
            *((PROJECTION, *tables) if tables else ()),
            *((RATES,) if self.rates is not None else ()),
            *((REFERENCE_QUERIES, REFERENCE_KEYS) if self.reference else ()),
            *((REFERENCE_ACTIONS,) if self.reference and self.reference.actions else ()),
            *((ATTRIBUTES,) if self.combinations.heights else ()),
            *((SEQUENCES,) if self.offline is not None else ()),
        )


def unserved_features(names: Iterable[str], *, stored: bool) -> tuple[str, ...]:
    """Those of the behavior features that no service has: an age changes while a state that was
    made with it is stored, so it is served where nothing is.
    """
    return (AGE,) if stored and AGE in names else ()


LATER: Final = ("rates", "reference")
"""Fields that the format got after bundles of it were out."""

_DEFAULTS: Final = {
    field.name: field.default for field in msgspec.structs.fields(Manifest) if field.name in LATER
}


def read_manifest(path: Path, max_bytes: int = MAX_READ_BYTES) -> bytes:
    """The bytes of a bundle's manifest.

    Raises:
        BundleMissing: there is no bundle at ``path``, or it cannot be read.
        BundleCorrupt: there are other files, but no manifest; or it is larger than it may be.
    """
    file = path / MANIFEST
    try:
        if file.stat().st_size > max_bytes:
            raise BundleCorrupt(
                f"{file} has more than {max_bytes} bytes, which bundle.max_read_bytes allows;"
                " raise it if that is right"
            )
        return file.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BundleMissing(f"{path / MANIFEST} cannot be read: {one_line(error)}") from error
    if path.is_dir() and any(path.iterdir()):
        raise BundleCorrupt(f"{path / MANIFEST} is absent; export the bundle again")
    raise BundleMissing(
        f"there is no bundle at {path}; make one with `lifelong train` and `lifelong export`, "
        "or correct bundle.path"
    )


def digest_of(raw: bytes) -> bytes:
    """The 16 bytes that name a bundle, of its manifest's."""
    return hashlib.sha256(raw).digest()[:16]


def decode_manifest(path: Path, raw: bytes) -> Manifest:
    """The manifest, its format looked at first: one of another need not look like ours.

    Raises:
        BundleCorrupt: it is no manifest, or does not match its own checksum.
        BundleIncompatible: its format or its name is none of this version.
    """
    file = path / MANIFEST
    try:
        head = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise BundleCorrupt(f"{file} is not JSON: {one_line(error)}; export again") from error
    found = head.get("format") if isinstance(head, dict) else None
    if found != FORMAT:
        raise BundleIncompatible(
            f"{file} has format {found!r}, this version reads {FORMAT}; export the bundle again"
        )
    try:
        manifest = msgspec.convert(head, Manifest)
    except msgspec.ValidationError as error:
        raise BundleCorrupt(f"{file} is not a manifest: {one_line(error)}; export again") from error
    if manifest != sealed(manifest):
        raise BundleCorrupt(
            f"{file} does not match its own checksum: somebody changed it; export or copy the "
            "bundle again"
        )
    check_name(file, manifest.name)
    return manifest


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with its checksum."""
    tree = msgspec.to_builtins(manifest, order="deterministic")
    tree["checksum"] = ""
    # Sealed as it was written: what the format has had since counts where it says something.
    for name in LATER:
        if getattr(manifest, name) == _DEFAULTS[name]:
            del tree[name]
    encoded = msgspec.json.encode(tree)
    return msgspec.structs.replace(manifest, checksum=hashlib.sha256(encoded).hexdigest())


def check_name(file: Path, name: str) -> None:
    """Refuse a bundle's name that a path, a URL or a log line does not bear (`NAME`)."""
    if not NAME.fullmatch(name):
        raise BundleIncompatible(
            f"{file}: the name {name[:64]!r} may have letters, digits, dots, dashes and "
            "underscores, 100 at most; give the training run another and export it"
        )


def states_of(path: Path) -> bytes | None:
    """The digest that names a bundle, by which the states that it makes of users are kept; None: it
    makes none. Reads the manifest alone.

    Raises:
        BundleError: there is no bundle at ``path``, or its manifest cannot be used.
    """
    raw = read_manifest(path)
    return hashlib.sha256(raw).digest()[:16] if decode_manifest(path, raw).stored else None
