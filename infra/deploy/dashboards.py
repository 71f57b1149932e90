"""Grafana's dashboards: six, each a list of panels.

Plain data, as Grafana keeps it. Whoever looks chooses the data source and the instances; what rules
record is of all instances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from infra.deploy.alerts import RUNBOOKS
from infra.deploy.causes import (
    CALIBRATION,
    CALIBRATION_ERROR,
    MISCALIBRATED,
    STARTS,
    predicted_over_observed,
)
from infra.deploy.objectives import ERRORS, OBJECTIVES, RANKINGS

CHOSEN: Final = 'instance=~"$instance"'
"""What chooses the instances."""

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

COLUMNS: Final = 3
WIDTH: Final = 24 // COLUMNS
HEIGHT: Final = 8

Kind = Literal["timeseries", "stat"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: what it shows, and from where on that is bad."""

    title: str
    queries: tuple[tuple[str, str], ...]
    """Expressions, each with its legend."""
    unit: str = "short"
    bad: float | None = None
    """From this value on it is drawn red."""
    below: bool = False
    """Whether it is bad below that value instead."""
    runbook: str | None = None
    kind: Kind = "timeseries"

    def data(self, number: int, runbooks: str) -> dict[str, Any]:
        """As Grafana keeps it."""
        colors = ("red", "green") if self.below else ("green", "red")
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if self.bad is not None:
            steps = [
                {"color": colors[0], "value": None},
                {"color": colors[1], "value": self.bad},
            ]
        page = f"{runbooks}/{self.runbook}.md"
        custom: dict[str, Any] = {}
        if self.kind == "timeseries" and self.bad is not None:
            custom = {"thresholdsStyle": {"mode": "line"}}
        return {
            "id": number + 1,
            "title": self.title,
            "type": self.kind,
            "datasource": SOURCE,
            "gridPos": {
                "h": HEIGHT,
                "w": WIDTH,
                "x": number % COLUMNS * WIDTH,
                "y": number // COLUMNS * HEIGHT,
            },
            "fieldConfig": {
                "defaults": {
                    "unit": self.unit,
                    "custom": custom,
                    "thresholds": {"mode": "absolute", "steps": steps},
                },
                "overrides": [],
            },
            "links": [{"title": "Runbook", "url": page}] if self.runbook else [],
            "targets": [
                {"refId": chr(65 + place), "expr": expr, "legendFormat": legend}
                for place, (expr, legend) in enumerate(self.queries)
            ],
        }


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard."""

    title: str
    panels: tuple[Panel, ...]

    @property
    def uid(self) -> str:
        """Its name in addresses, and of its file."""
        return f"lifelong-{self.title.lower().replace(' ', '-')}"

    def data(self, runbooks: str = RUNBOOKS) -> dict[str, Any]:
        """As Grafana imports it."""
        return {
            "uid": self.uid,
            "title": f"Lifelong / {self.title}",
            "tags": ["lifelong"],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "links": [
                {"type": "dashboards", "title": "Lifelong", "tags": ["lifelong"], "keepTime": True}
            ],
            "templating": {"list": [_DATASOURCE, _INSTANCE]},
            "panels": [panel.data(number, runbooks) for number, panel in enumerate(self.panels)],
        }


_DATASOURCE: Final = {"name": "datasource", "type": "datasource", "query": "prometheus"}
_INSTANCE: Final = {
    "name": "instance",
    "type": "query",
    "datasource": SOURCE,
    "query": 'label_values(up{job=~"lifelong-.*"}, instance)',
    "refresh": 2,
    "multi": True,
    "includeAll": True,
    "allValue": ".*",
}


def _rate(metric: str, by: str = "", more: str = "") -> str:
    within = f"{CHOSEN},{more}" if more else CHOSEN
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate({metric}{{{within}}}[$__rate_interval]))"


def _increase(metric: str, by: str = "") -> str:
    return _rate(metric, by).replace("rate(", "increase(", 1)


def _gauge(metric: str, how: str = "max") -> str:
    return f"{how}({metric}{{{CHOSEN}}})"


def _by(metric: str, by: str) -> str:
    return f"max by ({by}) ({metric}{{{CHOSEN}}})"


def _quantiles(histogram: str, more: str = "") -> tuple[tuple[str, str], ...]:
    buckets = _rate(f"{histogram}_bucket", "le", more)
    return tuple(
        (f"histogram_quantile({share}, {buckets})", f"p{share * 100:g}") for share in (0.5, 0.99)
    )


def _mean(histogram: str, more: str = "") -> str:
    return f"{_rate(f'{histogram}_sum', more=more)} / {_rate(f'{histogram}_count', more=more)}"


_STAGES: Final = _rate("lifelong_scorer_stage_seconds_bucket", "le, stage")


def _missed(number: int) -> Panel:
    objective = OBJECTIVES[number]
    return Panel(
        objective.promise,
        tuple(
            (f'{ERRORS}{window}{{slo="{objective.name}"}}', f"missed, {window}")
            for window in ("5m", "1h", "6h", "3d")
        ),
        "percentunit",
        objective.budget,
        runbook=objective.runbook,
    )


OVERVIEW: Final = Dashboard(
    "Overview",
    (
        *(_missed(number) for number in range(len(OBJECTIVES))),
        Panel(
            "Events lost",
            (("sum(increase(lifelong_worker_lost_events_total[$__range]))", "lost"),),
            bad=1,
            runbook="events-lost",
            kind="stat",
        ),
        Panel(
            "Processes up",
            (('sum by (job) (up{job=~"lifelong-.*"})', "{{job}}"),),
            runbook="not-live",
        ),
        Panel(
            "Starts",
            ((f"max by (job) ({STARTS})", "{{job}}"),),
            bad=3,
            runbook="crash-loop",
        ),
        Panel(
            "Bundles in service",
            (
                ("count by (version) (lifelong_worker_bundle_info == 1)", "workers {{version}}"),
                ("count by (version) (lifelong_scorer_bundle_info == 1)", "scorers {{version}}"),
            ),
            runbook="bundles-differ",
        ),
        Panel(
            "Bundles that wait",
            (
                (_by("lifelong_worker_bundle_pending", "instance"), "worker {{instance}}"),
                (_by("lifelong_scorer_bundle_pending", "instance"), "scorer {{instance}}"),
            ),
            bad=1,
            runbook="reload-failed",
        ),
        Panel(
            "Bundles exchanged",
            (
                (
                    _increase("lifelong_worker_bundle_reloads_total", "outcome"),
                    "workers {{outcome}}",
                ),
                (
                    _increase("lifelong_scorer_bundle_reloads_total", "outcome"),
                    "scorers {{outcome}}",
                ),
            ),
            runbook="reload-failed",
        ),
        Panel(
            "Events a second", ((_rate("lifelong_worker_events_total", "outcome"), "{{outcome}}"),)
        ),
        Panel(
            "Rankings a second",
            ((_rate("lifelong_scorer_requests_total", "status", RANKINGS), "{{status}}"),),
        ),
        Panel(
            "Spans of traces",
            (
                (_rate("lifelong_worker_spans_total", "outcome"), "workers {{outcome}}"),
                (_rate("lifelong_scorer_spans_total", "outcome"), "scorers {{outcome}}"),
            ),
        ),
        Panel(
            "Memory",
            (
                (
                    f'process_resident_memory_bytes{{job=~"lifelong-.*",{CHOSEN}}}',
                    "{{instance}} {{pid}}",
                ),
            ),
            "bytes",
        ),
        Panel(
            "Processors",
            (
                (
                    f'rate(process_cpu_seconds_total{{job=~"lifelong-.*",{CHOSEN}}}[$__rate_interval])',
                    "{{instance}} {{pid}}",
                ),
            ),
        ),
    ),
)

STREAM: Final = Dashboard(
    "Stream",
    (
        Panel(
            "Event to rankings",
            _quantiles("lifelong_worker_stored_seconds"),
            "s",
            1,
            runbook="events-late",
        ),
        Panel(
            "Behind by partition",
            (
                (
                    _by("lifelong_worker_behind_seconds", "topic, partition"),
                    "{{topic}} {{partition}}",
                ),
            ),
            "s",
            60,
            runbook="lag-grows",
        ),
        Panel(
            "Lag by partition",
            (
                (
                    _by("lifelong_worker_consumer_lag", "topic, partition"),
                    "{{topic}} {{partition}}",
                ),
                ("lifelong:lag:sum", "all"),
            ),
            runbook="lag-grows",
        ),
        Panel(
            "Transactions",
            ((_rate("lifelong_worker_batches_total", "instance"), "{{instance}}"),),
            runbook="lag-grows",
        ),
        Panel("Events in a transaction", _quantiles("lifelong_worker_group_events")),
        Panel(
            "Time of a transaction",
            (
                *_quantiles("lifelong_worker_batch_seconds"),
                (_mean("lifelong_worker_append_seconds"), "append, mean"),
            ),
            "s",
        ),
        Panel(
            "Events that wait in memory",
            ((_by("lifelong_worker_waiting_bytes", "instance"), "{{instance}}"),),
            "bytes",
        ),
        Panel(
            "Events sent",
            (
                (
                    f"sum(rate(lifelong_worker_log_end_offset{{{CHOSEN}}}[$__rate_interval]))",
                    "a second",
                ),
            ),
        ),
        Panel("Partitions", ((_by("lifelong_worker_partitions", "instance"), "{{instance}}"),)),
        Panel(
            "Workers live and ready",
            (
                (f"min by (instance) (lifelong_worker_live{{{CHOSEN}}})", "live {{instance}}"),
                (f"min by (instance) (lifelong_worker_ready{{{CHOSEN}}})", "ready {{instance}}"),
            ),
            bad=1,
            below=True,
            runbook="not-ready",
        ),
        Panel(
            "Held by open transactions",
            ((_by("lifelong_worker_held_seconds", "topic, partition"), "{{topic}} {{partition}}"),),
            "s",
            120,
            runbook="partition-held",
        ),
        Panel(
            "Events held",
            ((_by("lifelong_worker_held_events", "topic, partition"), "{{topic}} {{partition}}"),),
            runbook="partition-held",
        ),
        Panel(
            "Unreadable partitions",
            ((_by("lifelong_worker_unreadable_partitions", "instance"), "{{instance}}"),),
            bad=1,
            runbook="partition-unreadable",
        ),
        Panel(
            "Brokers last told",
            (
                (
                    f"time() - lifelong_worker_logs_asked_timestamp_seconds{{{CHOSEN}}}",
                    "{{instance}}",
                ),
            ),
            "s",
            120,
            runbook="brokers-silent",
        ),
        Panel(
            "Consumers made anew",
            ((_increase("lifelong_worker_consumer_failures_total", "instance"), "{{instance}}"),),
            bad=1,
            runbook="brokers-silent",
        ),
        Panel(
            "Last transaction",
            (
                (
                    f"time() - lifelong_worker_last_batch_timestamp_seconds{{{CHOSEN}}} < 1e9",
                    "{{instance}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Dead letters by reason",
            ((_rate("lifelong_worker_rejects_total", "reason"), "{{reason}}"),),
            runbook="dead-letters",
        ),
        Panel(
            "Ignored by rule",
            (
                (
                    _rate("lifelong_worker_ignored_total", "source, reason"),
                    "{{source}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Questions to the Schema Registry",
            ((_increase("lifelong_worker_registry_requests_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Lost events",
            (
                (
                    _increase("lifelong_worker_lost_events_total", "cause"),
                    "{{cause}}",
                ),
                (
                    _increase("lifelong_worker_log_cuts_total"),
                    "logs cut",
                ),
            ),
            bad=1,
            runbook="events-lost",
        ),
    ),
)

EXTRACTION: Final = Dashboard(
    "Extraction",
    (
        Panel(
            "Sealed to clustered",
            _quantiles("lifelong_worker_freshness_seconds"),
            "s",
            5,
            runbook="interests-late",
        ),
        Panel(
            "Users due",
            ((_by("lifelong_worker_due_users", "instance"), "{{instance}}"),),
            runbook="interests-late",
        ),
        Panel(
            "Longest due",
            ((_by("lifelong_worker_due_oldest_seconds", "instance"), "{{instance}}"),),
            "s",
            60,
            runbook="interests-late",
        ),
        Panel(
            "Reclustered by outcome",
            ((_rate("lifelong_worker_reclusters_total", "outcome"), "{{outcome}}"),),
            runbook="interests-late",
        ),
        Panel("Time to recluster a user", _quantiles("lifelong_worker_recluster_seconds"), "s"),
        Panel(
            "Partitions to renew",
            ((_by("lifelong_worker_renewal_partitions", "instance"), "{{instance}}"),),
            runbook="bundles-differ",
        ),
        Panel(
            "Users renewed",
            ((_rate("lifelong_worker_renewal_users_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Bundle in service since",
            (
                (
                    f"time() - lifelong_worker_bundle_since_timestamp_seconds{{{CHOSEN}}} > 0",
                    "{{instance}}",
                ),
            ),
            "s",
        ),
    ),
)

_EXPIRY: Final = f"lifelong_scorer_certificate_expiry_timestamp_seconds{{{CHOSEN}}}"

SCORER: Final = Dashboard(
    "Scorer",
    (
        Panel(
            "Latency of rankings",
            _quantiles("lifelong_scorer_request_seconds", RANKINGS),
            "s",
            0.05,
            runbook="rankings-slow",
        ),
        Panel(
            "Answers by status",
            ((_rate("lifelong_scorer_requests_total", "route, status"), "{{route}} {{status}}"),),
            runbook="rankings-fail",
        ),
        Panel(
            "Refusals by reason",
            ((_rate("lifelong_scorer_rejected_total", "reason"), "{{reason}}"),),
            runbook="refusals",
        ),
        Panel(
            "Time of the stages, p99",
            (
                (
                    f"histogram_quantile(0.99, {_STAGES})",
                    "{{stage}}",
                ),
            ),
            "s",
            runbook="rankings-slow",
        ),
        Panel(
            "Wait for a turn",
            _quantiles("lifelong_scorer_queue_seconds"),
            "s",
            0.02,
            runbook="refusals",
        ),
        Panel(
            "Deadlines missed",
            ((_rate("lifelong_scorer_deadline_misses_total", "instance"), "{{instance}}"),),
            runbook="rankings-slow",
        ),
        Panel("Candidates of a request", _quantiles("lifelong_scorer_candidates")),
        Panel(
            "Requests in flight",
            ((_by("lifelong_scorer_inflight", "instance"), "{{instance}}"),),
            runbook="refusals",
        ),
        Panel(
            "What was known of users",
            ((_rate("lifelong_scorer_history_total", "kind"), "{{kind}}"),),
            runbook="store-empty",
        ),
        Panel(
            "Degraded rankings",
            (("lifelong:degraded:ratio_rate5m", "share"),),
            "percentunit",
            0.01,
            runbook="degraded",
        ),
        Panel(
            "Scorers ready",
            (
                (f"min by (instance) (lifelong_scorer_ready{{{CHOSEN}}})", "ready {{instance}}"),
                (
                    f"min by (instance) (lifelong_scorer_store_answers{{{CHOSEN}}})",
                    "store answers {{instance}}",
                ),
            ),
            bad=1,
            below=True,
            runbook="not-ready",
        ),
        Panel(
            "Days until the certificate expires",
            ((f"(min by (instance) ({_EXPIRY} > 0) - time()) / 86400", "{{instance}}"),),
            bad=7,
            below=True,
            runbook="certificate-expires",
        ),
        Panel(
            "Since the last ranking",
            (
                (
                    f"time() - lifelong_scorer_last_ranking_timestamp_seconds{{{CHOSEN}}} < 1e9",
                    "{{instance}}",
                ),
            ),
            "s",
            runbook="not-ready",
        ),
        Panel(
            "Bundle in service since",
            (
                (
                    f"time() - lifelong_scorer_bundle_since_timestamp_seconds{{{CHOSEN}}} > 0",
                    "{{instance}}",
                ),
            ),
            "s",
        ),
    ),
)

STORE: Final = Dashboard(
    "Store",
    (
        Panel(
            "Room used",
            ((_gauge("lifelong_worker_store_used_ratio"), "used"),),
            "percentunit",
            0.8,
            runbook="store-full",
        ),
        Panel(
            "Slots for readers",
            ((_gauge("lifelong_worker_store_reader_ratio"), "taken"),),
            "percentunit",
            0.8,
            runbook="reader-slots",
        ),
        Panel(
            "Errors by class and code",
            ((_rate("lifelong_worker_store_errors_total", "error, code"), "{{error}} {{code}}"),),
            bad=0.1,
            runbook="store-errors",
        ),
        Panel(
            "Writes tried again",
            ((_rate("lifelong_worker_store_retries_total"), "a second"),),
            runbook="store-errors",
        ),
        Panel("Time of an append", _quantiles("lifelong_worker_append_seconds"), "s"),
        Panel("Time of a read", _quantiles("lifelong_scorer_stage_seconds", 'stage="store"'), "s"),
        Panel(
            "Damaged records",
            (
                (
                    _increase("lifelong_worker_store_damage_total", "kind"),
                    "workers {{kind}}",
                ),
                (
                    _increase("lifelong_scorer_store_damage_total", "kind"),
                    "scorers {{kind}}",
                ),
            ),
            bad=1,
            runbook="store-damage",
        ),
        Panel("Expired users", ((_rate("lifelong_worker_expired_users_total"), "a second"),)),
        Panel(
            "Store without users",
            ((_by("lifelong_scorer_store_empty", "instance"), "{{instance}}"),),
            bad=1,
            runbook="store-empty",
        ),
    ),
)

QUALITY: Final = Dashboard(
    "Model quality",
    (
        Panel(
            "Strangers",
            (("lifelong:strangers:ratio_rate1h", "share of rankings"),),
            "percentunit",
            runbook="strangers-rise",
        ),
        Panel(
            "Unknown items",
            (("lifelong:unknown_items:ratio_rate1h", "share of candidates"),),
            "percentunit",
            runbook="unknown-items-rise",
        ),
        Panel(
            "Predicted / observed",
            ((CALIBRATION, "{{version}}"),),
            bad=MISCALIBRATED,
            runbook="miscalibrated",
        ),
        Panel(
            "Expected calibration error",
            ((CALIBRATION_ERROR, "{{version}}"),),
            runbook="miscalibrated",
        ),
        Panel(
            "Predicted / observed by CTR",
            ((predicted_over_observed("bin", f"{{{CHOSEN}}}"), "up to {{bin}}"),),
            bad=MISCALIBRATED,
            runbook="miscalibrated",
        ),
        Panel(
            "Outcomes told a second",
            ((_rate("lifelong_scorer_outcomes_total", "version"), "{{version}}"),),
        ),
        Panel(
            "Newer behaviors a ranking",
            (
                (_mean("lifelong_scorer_newer_behaviors"), "mean"),
                *_quantiles("lifelong_scorer_newer_behaviors"),
            ),
            bad=128,
            runbook="interests-late",
        ),
        Panel(
            "TWIN's hit rate",
            ((_mean("lifelong_scorer_sampled_ratio", 'measure="hit_rate"'), "mean"),),
            "percentunit",
            0.999,
            below=True,
            runbook="search-misses",
        ),
        Panel(
            "TWIN's found weight",
            ((_mean("lifelong_scorer_sampled_ratio", 'measure="found_weight"'), "mean"),),
            "percentunit",
        ),
        Panel(
            "ENCODE's clustering loss",
            ((_mean("lifelong_scorer_sampled_nats", 'measure="clustering_loss"'), "nats"),),
        ),
        Panel(
            "Relevance indicator",
            tuple(
                (_mean("lifelong_scorer_sampled_nats", f'measure="{name}"'), name)
                for name in ("relevance_indicator", "relevance_least", "relevance_uniform")
            ),
        ),
        Panel(
            "Samples by outcome",
            ((_rate("lifelong_scorer_samples_total", "outcome"), "{{outcome}}"),),
        ),
        Panel("Time of a sample", _quantiles("lifelong_scorer_sample_seconds"), "s"),
    ),
)

DASHBOARDS: Final = (OVERVIEW, STREAM, EXTRACTION, SCORER, STORE, QUALITY)
