"""Sections of a run's TOML file: those that name their kind, and checks of their values."""

from __future__ import annotations

import msgspec

from infra.errors import TrainingError


class TaggedSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """A section of a TOML file whose key ``kind`` says which one it is."""


def at_least(key: str, value: int, least: int) -> None:
    """Check a section's number.

    Raises:
        TrainingError: ``value``, which a file has at the dotted ``key``, is less than ``least``.
    """
    if value < least:
        raise TrainingError(f"{key} is {value}; it is at least {least}")
