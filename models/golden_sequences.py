"""Golden sequences: behaviors and candidates, and the CTRs that the torch network gives for them.

They hold the whole way of the services against the network: items looked up, the part that a state
covers extracted by the manifest's settings and stored, newer behaviors and features added, the
graph run. A service with another scale, K, L or T gives other CTRs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Final

import msgspec
import numpy as np
import torch

from infra.arrays import F32, I64, U64, Array
from infra.behaviors import item_key
from models.bundle import (
    GOLDEN_TOLERANCE,
    Catalog,
    EncodeOffline,
    GoldenSequence,
    Manifest,
    Tensor,
    ctr_difference,
)
from models.bundle.combinations import ACTION, AGE, DWELL
from models.features import (
    EMPTY_HISTORY,
    age_bucket,
    ages_s,
    cross_features,
    dwell_bucket,
    user_features,
)
from models.modules.sequence import BehaviorSequence, Target
from models.network import Network
from models.reference.serving import add_to_history

NOW_MS: Final = 1_700_000_000_000
HOUR_MS: Final = 3_600_000

NOISE: Final = 1e-6
"""Relative change of all embeddings that a golden sequence must bear: some times what another
processor's rounding amounts to."""

STEADY: Final = GOLDEN_TOLERANCE / 2
"""Largest change of its CTRs at that: numbers rounded to 16 bits may fall to the other side. A
sequence whose clustering hangs on a tie would be refused by another machine."""

SHAKEN: Final = 3
"""How often a sequence is tried with noise."""

LATE: Final = "late"
"""The sequence whose event times do not ascend."""

FEW: Final = 30
"""Items of a sequence on few, where the system has no number of its own."""

DRAWS: Final = 20
"""Draws of a sequence until it is steady; one that never is gets left out."""


def golden_sequences(
    network: Network,
    manifest: Manifest,
    catalog: Catalog,
    known: Sequence[int],
    rates: F32 | None = None,
) -> list[GoldenSequence]:
    """The golden sequences of a network that the services serve.

    Args:
        manifest: of its bundle: L, the offline settings, and how states are stored.
        catalog: of its bundle.
        known: n + 1 rows of the network's own item table, in the bundle's order.
        rates: f32[n + 1], the items' rates, in the same order; for a network that sees them.
    """
    found: dict[str, GoldenSequence] = {}
    for draw in range(DRAWS):
        rng = np.random.default_rng((manifest.seed, draw))
        missing = [one for one in _draw(rng, manifest, catalog) if one.name not in found]
        answered = answer_sequences(network, manifest, catalog, known, missing, rates)
        found |= {one.name: one for one in answered}
    return list(found.values())


def answer_sequences(
    network: Network,
    manifest: Manifest,
    catalog: Catalog,
    known: Sequence[int],
    sequences: Iterable[GoldenSequence],
    rates: F32 | None = None,
) -> list[GoldenSequence]:
    """Sequences with the CTRs of a network; those that hang on a tie are left out.

    Args:
        manifest, catalog, known, rates: as of `golden_sequences`.
        sequences: whatever CTRs they have.
    """
    asked = _Asked(network, manifest, catalog, known, rates)
    answered = map(asked.answer, sequences)
    return [one for one in answered if one is not None]


def _draw(
    rng: np.random.Generator, manifest: Manifest, catalog: Catalog
) -> Iterator[GoldenSequence]:
    """Sequences of all kinds without their CTRs; rows are the bundle's, negative: unknown to it."""
    n, L = manifest.n_items, manifest.L
    # Whoever clusters is asked about as many items as clusters, and about more.
    K, alone, more = FEW, "few items", "many items"
    if isinstance(manifest.offline, EncodeOffline):
        K, alone, more = manifest.offline.K, "K items", "more items than K"
    items = rng.permutation(n) + 1
    few, many = items[:K], items[: 3 * K]
    unknown = -rng.integers(1, 6, 60)
    mixed = np.where(rng.random(60) < 0.4, unknown, rng.choice(many, 60))
    # The oldest behavior that is covered, and the one before it, are on items met nowhere else: as
    # candidates they tell whether L is one more or one less.
    others = items[2:] if n > 2 else items
    long = np.concatenate((items[:2], rng.choice(others, L - 1 + 20)))
    ids, dwells = _Ids(catalog), DWELL in manifest.combinations.heights
    for name, rows, newer in (
        ("no behavior", items[:0], 0),
        ("one behavior, newer", items[:1], 1),
        ("one behavior, covered", items[:1], 0),
        ("all alike", np.repeat(items[:1], 70), 6),
        (alone, rng.permutation(np.repeat(few, 3)), 0),
        (more, rng.choice(many, 5 * K + 10), 10),
        ("no state", rng.choice(many, 40), 40),
        ("known and unknown", mixed, 20),
        ("unknown alone", unknown[:12], 4),
        (LATE, rng.choice(many, 50), 8),
        ("longer than L", long, 20),
    ):
        # Of the sequence's ends, of all, unknown ones, and one twice.
        candidates = (rows[:2], rows[-4:], rng.integers(1, n + 1, 8), [-1, -6], rows[:1])
        actions = rows[:0]
        if manifest.needs_actions:
            actions = rng.integers(0, len(manifest.actions) + 1, len(rows))
        # Up to nine hours, and none at all.
        dwell_ms = 2.0 ** rng.uniform(0, 25, len(rows)) - 1 if dwells else rows[:0]
        times = NOW_MS - HOUR_MS * np.arange(len(rows), 0, -1, dtype=np.int64)
        yield GoldenSequence(
            name=name,
            items=ids.of(rows),
            times=(rng.permutation(times) if name == LATE else times).tolist(),
            newer=newer,
            count=len(rows) if len(rows) <= L else 10 * L,
            candidates=ids.of(np.concatenate(candidates).astype(np.int64)),
            now_ms=NOW_MS,
            ctr=Tensor.of(np.zeros(0, np.float32)),
            actions=actions.tolist(),
            dwells=dwell_ms.astype(np.int64).tolist(),
        )


class _Ids:
    """Item ids by row of the bundle, and for negative rows such as no item has."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        drawn = (f"unknown {number}" for number in count(1))
        self._unknown = list(islice((one for one in drawn if not _rows(catalog, [one])[0]), 6))

    def of(self, rows: I64) -> list[str]:
        known, unknown = self._catalog.item_ids, self._unknown
        return [known[row] if row > 0 else unknown[-row - 1] for row in rows.tolist()]


class _Asked:
    """A network that is asked about users of a bundle's items."""

    def __init__(
        self,
        network: Network,
        manifest: Manifest,
        catalog: Catalog,
        known: Sequence[int],
        rates: F32 | None,
    ) -> None:
        self._rates = rates
        self._network, self._manifest, self._catalog = network, manifest, catalog
        self._known = np.array(known, np.int64)
        self._table = network.item_table().detach()
        self._half = any(one.dtype == "float16" for one in manifest.stored.values())

    def answer(self, golden: GoldenSequence) -> GoldenSequence | None:
        """The sequence with its CTRs; None: they hang on a tie."""
        rows = _rows(self._catalog, [*golden.items, *golden.candidates])
        # Of ten million items, those that it is about.
        used, places = np.unique(self._known[rows], return_inverse=True)
        table, at = self._table[torch.from_numpy(used)], torch.from_numpy(places)
        ctr = Tensor.of(self._ctrs(golden, table, at))
        rng = np.random.default_rng(self._manifest.seed)
        # What stores nothing has clustered nothing, and its search has exact scores.
        for _ in range(SHAKEN if self._manifest.stored else 0):
            noise = torch.from_numpy(rng.standard_normal(table.shape, np.float32))
            shaken = self._ctrs(golden, table * (1 + NOISE * noise), at)
            if not ctr_difference(shaken, ctr, self._network.sampling_rate) <= STEADY:
                return None
        return msgspec.structs.replace(golden, ctr=ctr)

    @torch.no_grad()
    def _ctrs(self, golden: GoldenSequence, table: torch.Tensor, at: torch.Tensor) -> F32:
        """CTRs f32[B] by the network; the state is of the last L behaviors that are not newer.
        Where nothing is stored, these are the last L of all.

        Args:
            table: embeddings of the items that the sequence is about.
            at: i64[n + B]: the rows in it of behaviors and candidates.
        """
        network, n = self._network, len(golden.items)
        beside = golden.newer if self._manifest.stored else 0
        kept = slice(max(n - beside - self._manifest.L, 0), n)
        items, times = golden.items[kept], np.array(golden.times[kept], np.int64)
        # One that is masked where there are none: no sequence is of length 0.
        rows = at[kept].unsqueeze(0) if items else torch.zeros(1, 1, dtype=torch.long)
        mask = torch.full(rows.shape, bool(items))
        newer = mask & (torch.arange(len(rows[0])) >= len(rows[0]) - golden.newer)
        actions = np.array(golden.actions[kept], np.int64)
        features = {name: torch.zeros_like(rows) for name in self._manifest.combinations.heights}
        if items:
            dwell_s = (np.array(golden.dwells[kept]) / 1000).astype(np.float32)
            of_each: dict[str, Array] = {
                ACTION: actions,
                DWELL: dwell_bucket(dwell_s),
                AGE: age_bucket(ages_s(times // 1000, golden.now_ms // 1000)),
            }
            for name in features:
                features[name] = torch.from_numpy(of_each[name].astype(np.int64)).unsqueeze(0)
        sequence = BehaviorSequence(
            rows,
            mask,
            table,
            newer=newer,
            features=features,
            feature_tables=network.feature_tables(),
        )
        recent = sequence.latest(network.config.M)
        candidates = _rows(self._catalog, golden.candidates)
        rate = None
        if (rates := self._manifest.rates) is not None:
            positive, counted = rates.kinds(("", *self._manifest.actions))
            rate = rates.of_users(positive[actions].sum(), counted[actions].sum())
        user = user_features(golden.count, int(times.max(initial=0)), golden.now_ms, rate)
        cross = cross_features(
            _keys(golden.candidates),
            self._catalog.popularity[candidates],
            add_to_history(EMPTY_HISTORY, _keys(items), times),
            golden.now_ms,
            None if self._rates is None else self._rates[candidates],
        )
        state = network.long.summarize_stored(sequence, half=self._half)
        logits = network.logits(
            {name: tensor for name, (tensor,) in state.items()},
            recent.embeddings[0],
            recent.mask[0].float(),
            torch.from_numpy(user),
            Target(table[at[n:]], torch.zeros_like(at[n:]), at[n:]),
            torch.from_numpy(cross),
        )
        ctrs: F32 = network.ctrs(logits).numpy()
        return ctrs


def _keys(items: Sequence[str]) -> U64:
    return np.array([item_key(item) for item in items], np.uint64)


def _rows(catalog: Catalog, items: Sequence[str]) -> I64:
    return catalog.rows(_keys(items)).astype(np.int64)
