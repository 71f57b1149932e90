"""Requests gathered into batches: dense arrays, no Python per row.

Sequences are stored once per user and requests point into them; one numba pass copies the part
that a request may see. Gathering releases the interpreter lock, so that it goes on beside training
in a thread of its own (`prefetch`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from infra.arrays import F32, F64, I8, I32, I64, U8, U64, Bools
from infra.compiling import fast_kernel
from models.data.interactions import Interactions
from models.data.rates import RateCounts
from models.data.requests import Requests, Sequences
from models.data.schema import Inputs
from models.data.withholding import Withholding, is_withheld
from models.features import age_bucket, cross_columns, dwell_bucket, user_columns

Item = TypeVar("Item")

PREFETCHED: Final = 2
"""Batches gathered ahead: one hides the gathering, a second its jitter."""


class Batch(NamedTuple):
    """R requests with B candidates each, L' behaviors at most."""

    rows: Tensor
    """i64[R, L']: rows of the behaviors' items, newest last, 0 where unknown or padded."""
    mask: Tensor
    """bool[R, L']: False where padded."""
    newer: Tensor
    """bool[R, L']: behaviors newer than the offline stage (`Requests.as_of`)."""
    features: dict[str, Tensor]
    """Rows i64[R, L'] in the table of each behavior feature of the schema, by name."""
    candidates: Tensor
    """i64[R, B]: rows, 0 where unknown."""
    user_rows: dict[str, Tensor]
    """Rows i64[R, w] in the table of each user attribute of the schema, by name."""
    user: Tensor
    """f32[R, u]: `models.data.schema.Inputs.user_features`."""
    cross: Tensor
    """f32[R, B, c]: `models.data.schema.Inputs.cross_features`."""
    labels: Tensor
    """f32[R, B]: 1 for positives."""
    weights: Tensor
    """f32[R, B]: 0 for candidates that do not count."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        if device.type == "cpu":
            return self
        moved: list[Any] = [
            {name: part.to(device, non_blocking=True) for name, part in value.items()}
            if isinstance(value, dict)
            else value.to(device, non_blocking=True)
            for value in self
        ]
        return Batch(*moved)


@dataclass(frozen=True)
class Gatherer:
    """Gathers requests on sequences into batches."""

    interactions: Interactions
    sequences: Sequences
    inputs: Inputs
    L: int
    """Behaviors before the offline stage that a request sees, at most."""
    stale: bool = True
    """Whether there is an offline stage, older than the request; without one it sees its last L."""

    def __call__(self, requests: Requests) -> Batch:
        """One batch of all these requests."""
        if not self.stale:
            requests = requests._replace(as_of=requests.cut)
        interactions, sequences = self.interactions, self.sequences
        start = sequences.start[requests.cut]
        window = np.maximum(start, requests.as_of - self.L)
        length = int((requests.cut - window).max(initial=1))
        R = len(requests.cut)
        withheld = requests.withheld or Withholding.none(R)
        rows = np.zeros((R, length), np.int64)
        mask = np.zeros((R, length), np.bool_)
        _gather_rows(
            sequences.items,
            interactions.first_seen,
            window,
            requests.cut,
            requests.bundle,
            *withheld,
            rows,
            mask,
        )
        stale = requests.cut - requests.as_of
        newer = mask & (np.arange(length) >= length - stale[:, None])
        seen, last = _gather_counts(
            sequences.items,
            sequences.times,
            window,
            requests.cut,
            requests.candidates,
            len(interactions.item_ids),
        )
        times = sequences.times[requests.cut] if requests.times is None else requests.times
        now_s = times.astype(np.float64)
        previous = sequences.times[np.maximum(requests.cut - 1, 0)].astype(np.float64)
        bundle = requests.bundle[:, None]
        unknown = interactions.first_seen[requests.candidates] >= bundle
        unknown |= withheld.of(requests.candidates)
        popularity = interactions.popularity(requests.candidates, bundle)
        popularity[unknown] = 0
        user_rates, item_rates = self._rates(requests, window, unknown)
        users = interactions.users[sequences.position[requests.cut]]
        return Batch(
            rows=torch.from_numpy(rows),
            mask=torch.from_numpy(mask),
            newer=torch.from_numpy(newer),
            features=self._features(window, requests.cut, times, length),
            candidates=torch.from_numpy(np.where(unknown, 0, requests.candidates).astype(np.int64)),
            user_rows={
                name: torch.from_numpy(table[users]) for name, table in self.inputs.users.items()
            },
            user=torch.from_numpy(user_columns(requests.cut - start, previous, now_s, user_rates)),
            cross=torch.from_numpy(
                cross_columns(seen, last, popularity, now_s[:, None], item_rates)
            ),
            labels=torch.from_numpy(requests.labels),
            weights=torch.from_numpy(requests.weights),
        )

    def batches(self, requests: Requests, size: int) -> Iterator[Batch]:
        """All requests, ``size`` at a time, in their order."""
        for begin in range(0, len(requests.cut), size):
            yield self(requests.part(slice(begin, begin + size)))

    def _rates(
        self, requests: Requests, window: I64, unknown: Bools
    ) -> tuple[F32 | None, F32 | None]:
        """The user's rate f32[R] and the candidates' f32[R, B], where the schema has them; nothing
        counts for an unknown item.
        """
        if self._rate_counts is None:
            return None, None
        # Of the training part no more than what was before a training request.
        known = np.minimum(requests.bundle, self.sequences.position[requests.cut])
        items = self._rate_counts.of_items(requests.candidates, known[:, None])
        items[unknown] = self._rate_counts.rates.base
        return self._rate_counts.of_users(window, requests.cut), items

    @cached_property
    def _rate_counts(self) -> RateCounts | None:
        rates = self.inputs.rates
        return None if rates is None else RateCounts.of(self.interactions, self.sequences, rates)

    def _features(self, window: I64, cut: I64, now: I64, length: int) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for name in self.inputs.schema.behaviors:
            rows = np.zeros((len(cut), length), np.int64)
            if name == "age":
                _gather_ages(self.sequences.times, window, cut, now, rows)
                rows = age_bucket(rows).astype(np.int64)
            else:
                _gather_feature(self._columns[name], window, cut, rows)
            features[name] = torch.from_numpy(rows)
        return features

    @cached_property
    def _columns(self) -> dict[str, I8 | U8]:
        """Recorded behavior features by name, [N] in the order of the sequences."""
        interactions, order = self.interactions, self.sequences.position
        columns: dict[str, I8 | U8] = {}
        if interactions.actions is not None:
            # By name: data that came later may number other actions in between.
            rows = {name: row for row, name in enumerate(self.inputs.actions, 1)}
            named = [rows.get(name, 0) for name in interactions.action_names]
            columns["action"] = np.array(named, np.uint8)[interactions.actions[order]]
        if interactions.dwell_s is not None:
            columns["dwell"] = dwell_bucket(interactions.dwell_s[order])
        return columns


def prefetch(items: Iterable[Item], ahead: int = PREFETCHED) -> Generator[Item]:
    """Items, made in a thread of their own, at most ``ahead`` of them in advance.

    An error in the making is raised here; leaving early ends the thread.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    left = threading.Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> bool:
        while not left.is_set():
            try:
                made.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  # raised in the consumer's thread
            put((None, error))

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, end = made.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            assert item is not None
            yield item
    finally:
        left.set()
        thread.join()


@fast_kernel
def _gather_rows(  # noqa: PLR0917  # kernels take nothing by name
    items: I32,
    first_seen: I64,
    begin: I64,
    end: I64,
    bundle: I64,
    keys: U64,
    limit: np.uint64,
    rows: I64,
    mask: Bools,
) -> None:
    """Put the items [begin, end) of each request at the right end of its row; items that the
    request's bundle does not know, or that are withheld from it, stay 0.
    """
    length = rows.shape[1]
    for r in range(len(begin)):
        shift = length - end[r]
        for i in range(begin[r], end[r]):
            known = first_seen[items[i]] < bundle[r]
            if known and not is_withheld(items[i], keys[r], limit):
                rows[r, i + shift] = items[i]
            mask[r, i + shift] = True


@fast_kernel
def _gather_feature(column: I8 | U8, begin: I64, end: I64, rows: I64) -> None:
    length = rows.shape[1]
    for r in range(len(begin)):
        shift = length - end[r]
        for i in range(begin[r], end[r]):
            rows[r, i + shift] = column[i]


@fast_kernel
def _gather_ages(times: I64, begin: I64, end: I64, now: I64, rows: I64) -> None:
    """Put the behaviors' ages into rows, in seconds (`models.features.ages_s`)."""
    length = rows.shape[1]
    for r in range(len(begin)):
        shift = length - end[r]
        for i in range(begin[r], end[r]):
            rows[r, i + shift] = max(now[r] - times[i], 1)


@fast_kernel
def _gather_counts(
    items: I32, times: I64, begin: I64, end: I64, candidates: I32, n_items: int
) -> tuple[F32, F64]:
    """How often (f32[R, B]) and when last (f64[R, B], seconds) each candidate occurs in
    [begin, end) of its request, whether or not the bundle knows the item.
    """
    counts = np.zeros(candidates.shape, np.float32)
    last = np.zeros(candidates.shape, np.float64)
    count_of = np.zeros(n_items, np.float32)
    last_of = np.zeros(n_items, np.float64)
    for r in range(len(begin)):
        for i in range(begin[r], end[r]):
            count_of[items[i]] += 1
            last_of[items[i]] = times[i]
        for b in range(candidates.shape[1]):
            counts[r, b] = count_of[candidates[r, b]]
            last[r, b] = last_of[candidates[r, b]]
        for i in range(begin[r], end[r]):
            count_of[items[i]] = 0
            last_of[items[i]] = 0
    return counts, last
