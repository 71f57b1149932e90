"""The model bundle: one directory that holds all that serving needs of a trained model.

    manifest.json        what it is: system, dimensions, training, metrics, sha256 of every file
    vocabulary.msgpack   item ids, titles and popularity, in the order of the embeddings' rows
    embeddings.npy       f32[n + 1, d], row 0 for items unknown to the bundle
    projection.onnx      embeddings[n, d] -> what the method computes of each item by itself:
                         ENCODE's projected[n, m] (Eq. 4), SDIM's hash signatures; if any
    scorer.onnx          one user's state and B candidates -> ctr[B]
    tables.npz           embeddings of user attributes and behavior features, if any
    golden.msgpack       requests with the CTRs that the trained network gave them

Bundles of all methods look alike, and `verify` checks any; `Bundle` reads those that the services
serve, ENCODE's. This module needs no torch: it is the one that the services import.
"""

from __future__ import annotations

from models.bundle.golden import (
    GOLDEN_TOLERANCE,
    GoldenChecks,
    GoldenRequest,
    Tensor,
    check_golden,
    golden_differences,
    make_session,
)
from models.bundle.loading import (
    SCORER_INPUTS,
    Bundle,
    BundleContents,
    Verified,
    Vocabulary,
    save_bundle,
    verify,
)
from models.bundle.manifest import (
    EMBEDDINGS,
    FILES,
    FORMAT,
    GOLDEN,
    MANIFEST,
    NAME,
    PROJECTION,
    SCORER,
    SERVED,
    TABLES,
    VOCABULARY,
    FileEntry,
    Manifest,
    StateTensor,
    states_of,
)

__all__ = [
    "EMBEDDINGS",
    "FILES",
    "FORMAT",
    "GOLDEN",
    "GOLDEN_TOLERANCE",
    "MANIFEST",
    "NAME",
    "PROJECTION",
    "SCORER",
    "SCORER_INPUTS",
    "SERVED",
    "TABLES",
    "VOCABULARY",
    "Bundle",
    "BundleContents",
    "FileEntry",
    "GoldenChecks",
    "GoldenRequest",
    "Manifest",
    "StateTensor",
    "Tensor",
    "Verified",
    "Vocabulary",
    "check_golden",
    "golden_differences",
    "make_session",
    "save_bundle",
    "states_of",
    "verify",
]
