"""The model bundle: one directory that holds all that serving needs of a trained model.

    manifest.json        what it is: system, dimensions, training, metrics, sha256 of every file
    manifest.json.sig    a signature of that, if somebody has signed it (`models.bundle.signing`)
    item_ids.npy         item ids, UTF-8 end to end, in the order of the embeddings' rows;
                         item_ids-offsets.npy i64[n + 2]: where each begins, and where the last ends
    titles.npy           their titles, likewise
    popularity.npy       f32[n + 1], training behaviors of the item per million
    rates.npy            f32[n + 1], the items' rates (`models.features.Rates`), if any
    lookup.npy           the hash table from item keys to rows (`models.kernels.lookup.SLOT`)
    embeddings.npy       f32[n + 1, d], row 0 for items unknown to the bundle
    table-NAME.npy       an item table [n + 1, width] of the manifest's ``tables``: what the method
                         computes of each item by itself: ENCODE's "projected" (Eq. 4), SDIM's
                         "signatures" (Eq. 7), TWIN's "queries", "keys" and "values" (Eqs. 6-7)
    projection.onnx      embeddings[n, d] -> the item tables, each an output by its name; if any
    scorer.onnx          one user's state and B candidates -> ctr[B]; in the state's place the
                         finished long-term vectors, where the services read it themselves
    attributes.npz       embeddings of user attributes and behavior features, if any; the services
                         read "behavior.NAME" f32[height, d] (`models.bundle.combinations`)
    reference-queries.npy, reference-keys.npy   f32[n + 1, d'], the attention of a run of DIN-L that
                         live measures take for the truth (`ReferenceEntry`), if any; what its keys
                         have of actions in reference-actions.npy f32[A + 1, d']
    golden.msgpack       requests with the CTRs that the trained network gave them
    golden-sequences.msgpack   the same from behaviors on, where the services serve the method

All arrays are memory-mapped: processes share them, and loading takes as long as hashing does.

Bundles of all methods look alike, `verify` checks any, and `Bundle` reads those whose network sees
what the services have; which of them are served is said in `extractor.systems`. This module needs
no torch: it is the one that the services import.
"""

from __future__ import annotations

from models.bundle.catalog import Catalog, Texts
from models.bundle.golden import (
    GOLDEN_TOLERANCE,
    GoldenChecks,
    GoldenRequest,
    GoldenSequence,
    Tensor,
    cannot_be_run,
    check_golden,
    ctr_difference,
    golden_differences,
    make_session,
)
from models.bundle.loading import (
    LONG_TERM,
    SCORER_INPUTS,
    Bundle,
    BundleContents,
    Reference,
    Verified,
    save_bundle,
    verify,
)
from models.bundle.manifest import (
    ATTRIBUTES,
    EMBEDDINGS,
    FILES,
    FORMAT,
    GOLDEN,
    ITEM_IDS,
    LOOKUP,
    MANIFEST,
    NAME,
    POPULARITY,
    PROJECTION,
    RATED,
    RATES,
    RECENT_FEATURES,
    SCORER,
    SEQUENCES,
    TITLES,
    EncodeOffline,
    FileEntry,
    Manifest,
    Offline,
    ReferenceEntry,
    SDIMOffline,
    StateTensor,
    TableEntry,
    TWINOffline,
    offsets_of,
    states_of,
    table_file,
    unserved_features,
)
from models.bundle.signing import SIGNATURE, private_key, sign
from models.bundle.watching import Found, look

__all__ = [
    "ATTRIBUTES",
    "EMBEDDINGS",
    "FILES",
    "FORMAT",
    "GOLDEN",
    "GOLDEN_TOLERANCE",
    "ITEM_IDS",
    "LONG_TERM",
    "LOOKUP",
    "MANIFEST",
    "NAME",
    "POPULARITY",
    "PROJECTION",
    "RATED",
    "RATES",
    "RECENT_FEATURES",
    "SCORER",
    "SCORER_INPUTS",
    "SEQUENCES",
    "SIGNATURE",
    "TITLES",
    "Bundle",
    "BundleContents",
    "Catalog",
    "EncodeOffline",
    "FileEntry",
    "Found",
    "GoldenChecks",
    "GoldenRequest",
    "GoldenSequence",
    "Manifest",
    "Offline",
    "Reference",
    "ReferenceEntry",
    "SDIMOffline",
    "StateTensor",
    "TWINOffline",
    "TableEntry",
    "Tensor",
    "Texts",
    "Verified",
    "cannot_be_run",
    "check_golden",
    "ctr_difference",
    "golden_differences",
    "look",
    "make_session",
    "offsets_of",
    "private_key",
    "save_bundle",
    "sign",
    "states_of",
    "table_file",
    "unserved_features",
    "verify",
]
