"""docs/metrics.md: every metric, what it means, what is normal and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from infra.deploy.advice import ADVICE
from infra.metrics import ScorerMetrics, WorkerMetrics

HEAD: Final = """\
# Metrics

<!-- Written by `python -m infra.deploy`: meanings are those of infra/metrics.py, the rest is
infra/deploy/advice.py. -->

Workers answer `/metrics` on `worker.metrics_port`, scorers on `scorer.port`, or on
`scorer.admin_port` where that is set; of several scorer processes any one answers for all. No label
is ever a user or an item. Counters end with `_total`, histograms have `_bucket`, `_sum` and
`_count`; times are in seconds.

[Alerts and rules](../infra/deploy/prometheus/lifelong-rules.yaml) take the names of two jobs,
`lifelong-worker` and `lifelong-scorer`; each alert has a [runbook](runbooks/README.md).
"""

PROCESSES: Final = """\
## Every process

`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,
`process_open_fds`, `process_max_fds`, `process_start_time_seconds` and `python_info` are those of
Prometheus' client. With several scorer processes each of them that lives has its own, told apart by
`pid`; all else is summed, or said in its meaning.
"""


def page() -> str:
    """The page."""
    sections = [HEAD]
    for title, owner in (("Worker", WorkerMetrics), ("Scorer", ScorerMetrics)):
        registry = CollectorRegistry()
        owner(registry)
        rows = "\n".join(_rows(registry.collect()))
        sections.append(
            f"## {title}\n\n| metric | kind | means | normal | else |\n"
            f"| --- | --- | --- | --- | --- |\n{rows}\n"
        )
    return "\n".join([*sections, PROCESSES])


def _rows(metrics: Iterable[Metric]) -> Iterable[str]:
    for metric in metrics:
        advice = ADVICE[metric.name]
        series = metric.name + ("_total" if metric.type == "counter" else "")
        means = metric.documentation.replace("|", "\\|")
        yield f"| `{series}` | {metric.type} | {means} | {advice.normal} | {advice.action} |"
