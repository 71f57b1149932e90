"""Impressions: what users were shown, and whether they took it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from infra.arrays import F32, I32, I64


class Impressions(Protocol):
    """What users were shown, S items in any order; `models.readers.logs` reads them."""

    @property
    def users(self) -> I32:
        """i32[S]: rows of `Interactions.user_ids`, -1 for others.

        Users without behaviors are left out: there is nothing to learn from their sequences.
        """

    @property
    def items(self) -> I32:
        """i32[S]: rows of `Interactions.item_ids`, 0 for others."""

    @property
    def times(self) -> I64:
        """i64[S], seconds since epoch."""

    @property
    def labels(self) -> F32:
        """f32[S]: 1 if taken, else 0."""


class ShownItems(NamedTuple):
    """Impressions as plain arrays."""

    users: I32
    items: I32
    times: I64
    labels: F32
