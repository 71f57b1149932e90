"""The objectives of the service, and alerts on how fast they use up what they may miss.

An objective that may miss 1 % in 30 days has used all of that up after 30 days at a burn rate of 1.
Each pair of windows has an alert: the long one says that it matters, the short one that it goes on
(Google's SRE workbook, chapter 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from infra.deploy.alerts import RUNBOOKS, Severity

RANKINGS: Final = 'route=~"/v1/rank|/v2/models/.*/infer|.*/ModelInfer"'
"""The routes that rank, of HTTP and of gRPC."""

FAILED: Final = "5..|429"
"""Statuses of rankings that were owed and not given: refused for too much load, too."""

ERRORS: Final = "lifelong:errors:ratio_rate"
"""Name of the recorded shares of what missed an objective; a window follows."""


class Burn(NamedTuple):
    """A pair of windows with the burn rate from which on it is an alert."""

    long: str
    short: str
    factor: float
    severity: Severity
    lasts: str


BURNS: Final = (
    Burn("1h", "5m", 14.4, "page", "2m"),
    Burn("6h", "30m", 6, "page", "15m"),
    Burn("1d", "2h", 3, "ticket", "1h"),
    Burn("3d", "6h", 1, "ticket", "3h"),
)
WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


@dataclass(frozen=True, slots=True)
class Objective:
    """What share of something must be well."""

    name: str
    """The label ``slo`` of its recorded series."""
    alert: str
    runbook: str
    target: float
    promise: str
    """The objective, in words."""
    good: str
    """Series that counts what is well."""
    all: str
    """Series that counts all of it."""
    action: str
    panel: tuple[str, str]

    @property
    def budget(self) -> float:
        """The share that may miss it."""
        return round(1 - self.target, 6)

    def ratio(self, window: str) -> str:
        """The share that missed it within a window; without any traffic there is none."""
        return f"1 - sum(rate({self.good}[{window}])) / sum(rate({self.all}[{window}]))"

    def recorded(self, window: str) -> str:
        """The name under which that is recorded."""
        return f'{ERRORS}{window}{{slo="{self.name}"}}'

    def expr(self, burn: Burn) -> str:
        """Whether both windows burn faster than they may."""
        limit = f"{burn.factor * self.budget:g}"
        return f"{self.recorded(burn.long)} > {limit} and {self.recorded(burn.short)} > {limit}"

    def annotations(self, burn: Burn, runbooks: str = RUNBOOKS) -> dict[str, str]:
        """What whoever is called reads."""
        return {
            "summary": f"{self.promise}: over {burn.long} and {burn.short},"
            f" {burn.factor:g} times as much missed it as may.",
            "panel": " / ".join(self.panel),
            "action": self.action,
            "runbook_url": f"{runbooks}/{self.runbook}.md",
        }

    def rules(self, runbooks: str = RUNBOOKS) -> Iterator[dict[str, object]]:
        """The alerting rules, the fastest first."""
        for burn in BURNS:
            yield {
                "alert": self.alert,
                "expr": self.expr(burn),
                "for": burn.lasts,
                "labels": {"severity": burn.severity, "window": burn.long},
                "annotations": self.annotations(burn, runbooks),
            }

    def recording(self) -> Iterator[dict[str, object]]:
        """The recording rules."""
        for window in WINDOWS:
            yield {
                "record": f"{ERRORS}{window}",
                "expr": self.ratio(window),
                "labels": {"slo": self.name},
            }


OBJECTIVES: Final = (
    Objective(
        "stored",
        "LifelongEventsLate",
        "events-late",
        0.99,
        "99 % of events count in rankings within 1 s of their Kafka timestamp",
        'lifelong_worker_stored_seconds_bucket{le="1.0"}',
        "lifelong_worker_stored_seconds_count",
        "See whether the store or the workers are slow: batch time against append time.",
        ("Stream", "Event to rankings"),
    ),
    Objective(
        "clustered",
        "LifelongInterestsLate",
        "interests-late",
        0.99,
        "99 % of full segments are in the interests within 5 s",
        'lifelong_worker_freshness_seconds_bucket{le="5.0"}',
        "lifelong_worker_freshness_seconds_count",
        "See how many users are due, and whether a new bundle is being made states for.",
        ("Extraction", "Sealed to clustered"),
    ),
    Objective(
        "answered",
        "LifelongRankingsFail",
        "rankings-fail",
        0.999,
        "99.9 % of rankings are answered without a fault of ours",
        f'lifelong_scorer_requests_total{{{RANKINGS},status!~"{FAILED}"}}',
        f"lifelong_scorer_requests_total{{{RANKINGS}}}",
        "See which status it is, and which reason is given.",
        ("Scorer", "Answers by status"),
    ),
    Objective(
        "fast",
        "LifelongRankingsSlow",
        "rankings-slow",
        0.99,
        "99 % of rankings are answered within 50 ms",
        f'lifelong_scorer_request_seconds_bucket{{{RANKINGS},le="0.05"}}',
        f"lifelong_scorer_request_seconds_count{{{RANKINGS}}}",
        "See which stage takes the time, and whether requests or their candidates have grown.",
        ("Scorer", "Latency of rankings"),
    ),
)
