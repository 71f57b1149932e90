"""``lifelong bench catalog``: a bundle of ten million items loaded, looked up, and shared.

The bundle is a shipped one, grown by made-up items of random embeddings until it has as many as
are asked for; its graphs and golden sequences are checked as with any. Rows of 3,000 candidates
are looked up among all of them, beside a binary search of the same keys, in rounds that alternate.
How long loading takes, and what memory a process has to itself, is measured in processes of their
own: one that holds the bundle already, and one beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

import msgspec
import numpy as np
import xxhash

from extractor.systems import load_system
from infra.arrays import F32, I32, U8, U64
from infra.behaviors import item_key
from infra.errors import LifelongError, SettingsError
from infra.settings import load_settings
from lifelong.bench.report import compose
from lifelong.shipped import BUNDLE, BUNDLES
from models.bundle import (
    PROJECTION,
    Bundle,
    BundleContents,
    Catalog,
    Texts,
    make_session,
    save_bundle,
    table_file,
)

OURS: Final = "lifelong"
PEER: Final = "np.searchsorted"
CANDIDATES: Final = 3000
SEED: Final = 20
CHUNK: Final = 2**20
"""Items that are projected at once."""

STARTED_S: Final = 600.0
"""Longest that a process may take to load."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    items: int
    rounds: int
    requests: int
    """Of CANDIDATES each, a round."""


FULL: Final = Load(items=10_000_000, rounds=25, requests=40)
QUICK: Final = Load(items=1_000_000, rounds=9, requests=40)


def run(quick: bool, system: str = "encode") -> dict[str, Any]:
    """Measure; the bench's JSON object. "figures" are in seconds and bytes, but for ``items`` and
    ``lookup_us``, microseconds for CANDIDATES; ``second_*`` are what a process more has or shares,
    ``tables_bytes`` what the system's item tables have of ``bundle_bytes``.

    Args:
        system: whose shipped bundle is grown.
    """
    load = QUICK if quick else FULL
    if system not in BUNDLES:
        raise SettingsError(f"--system {system!r}: choose {' or '.join(BUNDLES)}")
    with tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory:
        path = Path(directory) / "bundle"
        manifest = save_bundle(grown(Bundle.load(BUNDLES[system]), load.items), path)
        figures: dict[str, float] = {
            "items": load.items,
            "bundle_bytes": sum(file.stat().st_size for file in path.iterdir()),
            "tables_bytes": sum(manifest.files[table_file(name)].size for name in manifest.tables),
            **_measure_processes(path),
        }
        rounds = measure_lookups(path, load)
    figures["lookup_us"] = round(1e6 * CANDIDATES / median(rounds[OURS]), 1)
    return {**compose(OURS, rounds, "candidates/s", [PEER]), "figures": figures}


def grown(bundle: Bundle, items: int) -> BundleContents:
    """A bundle's contents with made-up items behind its own, so that there are ``items`` of them.

    Its manifest says nothing else, and its golden sequences stay what they are: no two items have
    one id.
    """
    more = items - bundle.manifest.n_items
    if more < 1:
        raise LifelongError(f"{bundle.path} has {bundle.manifest.n_items} items, name more")
    rng = np.random.default_rng(SEED)
    made = rng.standard_normal((more, bundle.manifest.d), np.float32)
    embeddings = np.concatenate((bundle.embeddings, made))
    del made
    digits = _digits(more)
    ids, titles = _numbered(b"made-", digits), _numbered(b"An item that was made up, ", digits)
    keys = np.concatenate(
        (
            np.array([item_key(item) for item in bundle.item_ids[1:]], np.uint64),
            np.fromiter(map(xxhash.xxh3_64_intdigest, map(bytes, ids)), np.uint64, more),
        )
    )
    popularity = np.concatenate((bundle.popularity, rng.random(more, np.float32)))
    catalog = Catalog.keyed(
        _joined(bundle.item_ids, ids), _joined(bundle.titles, titles), popularity, keys
    )
    projection = (bundle.path / PROJECTION).read_bytes()
    return BundleContents(
        manifest=msgspec.structs.replace(
            bundle.manifest, name="grown", n_items=items, reference=None
        ),
        catalog=catalog,
        embeddings=embeddings,
        scorer_model=bundle.scorer_model,
        golden=bundle.golden,
        projection_model=projection,
        tables=_project(projection, list(bundle.tables), embeddings),
        sequences=bundle.sequences,
    )


def _digits(n: int) -> U8:
    """The numbers below n in decimal, u8[n, w]: nobody makes ten million Python strings here."""
    width = len(str(n))
    numbers = np.arange(n)[:, None] // 10 ** np.arange(width - 1, -1, -1)
    return (numbers % 10 + ord("0")).astype(np.uint8)


def _numbered(prefix: bytes, digits: U8) -> U8:
    return np.concatenate(
        (np.broadcast_to(np.frombuffer(prefix, np.uint8), (len(digits), len(prefix))), digits), 1
    )


def _joined(texts: Texts, more: U8) -> Texts:
    """The texts, and behind them those of u8[n, w], all of one length."""
    ends = texts.offsets[-1] + more.shape[1] * np.arange(1, len(more) + 1)
    return Texts(
        np.concatenate((texts.utf8, more.reshape(-1))), np.concatenate((texts.offsets, ends))
    )


def _project(model: bytes, names: list[str], embeddings: F32) -> dict[str, Any]:
    session = make_session(model)
    parts = [
        session.run(names, {"embeddings": embeddings[begin : begin + CHUNK]})
        for begin in range(0, len(embeddings), CHUNK)
    ]
    return {
        name: np.concatenate(part)
        for name, part in zip(names, zip(*parts, strict=True), strict=True)
    }


def measure_lookups(path: Path, load: Load) -> dict[str, list[float]]:
    """Candidates a second, by name and round; any of them is as likely as any other."""
    bundle = Bundle.load(path, verify=False)
    bundle.warm()
    slots = bundle.catalog.slots
    known = slots["row"] > 0
    keys = slots["key"][known]
    order = np.argsort(keys)
    ordered, rows = keys[order], slots["row"][known][order]

    def search(candidates: U64) -> I32:
        place = np.searchsorted(ordered, candidates)
        place[place == len(ordered)] = 0
        return np.where(ordered[place] == candidates, rows[place], np.int32(0))

    ways: dict[str, Callable[[U64], I32]] = {OURS: bundle.rows, PEER: search}
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    rng = np.random.default_rng(SEED)
    for _ in range(load.rounds):
        for name, find in ways.items():
            requests = [rng.choice(keys, CANDIDATES) for _ in range(load.requests)]
            began = time.perf_counter()
            for candidates in requests:
                find(candidates)
            rounds[name].append(CANDIDATES * load.requests / (time.perf_counter() - began))
    candidates = rng.choice(keys, CANDIDATES)
    assert np.array_equal(bundle.rows(candidates), search(candidates))
    return rounds


def _measure_processes(path: Path) -> dict[str, float]:
    """Seconds and bytes of a process that loads the bundle beside one that has it."""
    with _Loading(path) as first:
        alone = first.report()
        with _Loading(path) as second:
            found = second.report()
    return {
        "first_load_s": alone["load_s"],
        "load_s": found["load_s"],
        "map_s": found["map_s"],
        "warm_s": found["warm_s"],
        **{f"second_{name}": found[name] for name in ("private_bytes", "pss_bytes", "rss_bytes")},
    }


class _Loading:
    """A process that loads a bundle, tells what that took, and holds it until it is left."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "lifelong.bench.catalog", str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def report(self) -> dict[str, float]:
        """What it tells once it has loaded."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LifelongError("a process that loads the bundle ended without a word")
        told: dict[str, float] = json.loads(line)
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=STARTED_S)


def _load_and_tell(path: Path) -> None:
    """What a process of its own does."""
    settings = load_settings({"bundle": {"path": str(path)}}, environ={})
    # The shipped bundle first: modules, kernels and onnxruntime are loaded and count in neither.
    _, system = load_system(load_settings({"bundle": {"path": str(BUNDLE)}}, environ={}))
    system.warm()
    before = _memory()
    began = time.perf_counter()
    bundle, system = load_system(settings)
    loaded = time.perf_counter()
    system.warm()
    warm = time.perf_counter()
    after = _memory()
    Bundle.load(path, verify=False)
    mapped = time.perf_counter()
    report = {
        "load_s": round(loaded - began, 3),
        "warm_s": round(warm - loaded, 3),
        "map_s": round(mapped - warm, 4),
        **{f"{name}_bytes": after[name] - before[name] for name in before},
    }
    print(json.dumps(report), flush=True)
    sys.stdin.read()
    del bundle, system


def _memory() -> dict[str, int]:
    """Bytes of this process: its own alone, its share of all, and all (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return {
        "private": 1024 * (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]),
        "pss": 1024 * kilobytes["Pss"],
        "rss": 1024 * kilobytes["Rss"],
    }


if __name__ == "__main__":
    _load_and_tell(Path(sys.argv[1]))
