"""Which series there are, and which an expression asks for."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

from infra.deploy.causes import SHARES
from infra.deploy.objectives import ERRORS, WINDOWS
from infra.metrics import ScorerMetrics, WorkerMetrics

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def metrics() -> dict[str, str]:
    """Ours, each with its type."""
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    ScorerMetrics(registry)
    return {metric.name: metric.type for metric in registry.collect()}


def series() -> set[str]:
    """Names that can be asked for: of metrics, and of what rules record."""
    ours = {
        name + suffix for name, kind in metrics().items() for suffix in SUFFIXES.get(kind, ("",))
    }
    return ours | SHARES.keys() | {f"{ERRORS}{window}" for window in WINDOWS}


def named(expr: str) -> set[str]:
    """Names of our series in an expression."""
    return set(re.findall(r"\blifelong(?:_|:)[\w:]+", re.sub(r'"[^"]*"', '""', expr)))
