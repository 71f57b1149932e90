"""Callers: those whose credentials are valid."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from scorer.rates import Rate


class Caller(NamedTuple):
    """Somebody whose credential is valid."""

    name: str
    """As the file of keys, or the token, has it."""
    scopes: frozenset[str]
    rate: Rate | None = None
    """How often they may ask; None: as often as they like."""


this_caller: ContextVar[Caller | None] = ContextVar("this_caller", default=None)
"""Who asks for what the current task answers; None: nobody was asked who they are."""
