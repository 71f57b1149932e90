"""Settings as the file that a command reads."""

from __future__ import annotations

from typing import Any

from infra.settings import Settings


def toml(settings: Settings) -> str:
    """The settings as a file, as far as they were chosen."""
    lines: list[str] = []
    for section, values in settings.model_dump(mode="json", exclude_unset=True).items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {_value(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
