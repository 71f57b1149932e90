"""Rules in which time runs faster: every window, and every span that an alert waits for, divided.

Somebody who tries the rules out has no hours to wait. What scales is time alone: windows, offsets,
``for`` and limits that are seconds; shares, rates and counts stay, and so do names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}

_SPAN: Final = re.compile(r"(\[|\boffset )(\d+)(ms|s|m|h|d)\b")
_LIMIT: Final = re.compile(r"(_seconds\)? > )(\d+)")
"""A limit of a metric that is in seconds, with or without what it is aggregated by."""


def scaled(rules: Mapping[str, Any], by: float) -> dict[str, Any]:
    """The rules of a file, with time divided by ``by``.

    >>> rule = {"expr": "rate(x_total[1h] offset 1d) > 2", "for": "5m"}
    >>> scaled({"groups": [{"name": "a", "rules": [rule]}]}, 60)["groups"][0]["rules"]
    [{'expr': 'rate(x_total[60s] offset 1440s) > 2', 'for': '5s'}]
    """
    return {"groups": [_group(group, by) for group in rules["groups"]]}


def scaled_expr(expr: str, by: float) -> str:
    """An expression with time divided.

    >>> scaled_expr("max by (partition) (held_seconds) > 120 and x > 120", 60)
    'max by (partition) (held_seconds) > 2 and x > 120'
    """
    expr = _SPAN.sub(lambda found: found[1] + _span(int(found[2]), found[3], by), expr)
    return _LIMIT.sub(lambda found: f"{found[1]}{int(found[2]) / by:g}", expr)


def _group(group: Mapping[str, Any], by: float) -> dict[str, Any]:
    return {**group, "rules": [scaled_rule(rule, by) for rule in group["rules"]]}


def scaled_rule(rule: Mapping[str, Any], by: float) -> dict[str, Any]:
    """One of the rules, with time divided."""
    changed = {"expr": scaled_expr(rule["expr"], by)}
    if "for" in rule:
        number, unit = re.fullmatch(r"(\d+)(\w+)", rule["for"]).groups()  # type: ignore[union-attr]
        changed["for"] = _span(int(number), unit, by)
    return {**rule, **changed}


def _span(number: int, unit: str, by: float) -> str:
    """Prometheus knows no fractions of a unit: seconds where they are whole, milliseconds else."""
    milliseconds = round(number * _SECONDS[unit] * 1000 / by)
    whole, rest = divmod(milliseconds, 1000)
    return f"{milliseconds}ms" if rest else f"{whole}s"
