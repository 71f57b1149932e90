"""An alert: when it fires, what it means, where to look, what to do; and how to prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

RUNBOOKS: Final = "docs/runbooks"
"""Where the runbooks are, unless who writes the rules names another place."""

Severity = Literal["page", "ticket"]
"""Whether somebody is woken, or it can wait for the morning."""


@dataclass(frozen=True, slots=True)
class Case:
    """Metrics as they come in, for a test of an alert."""

    series: Mapping[str, str]
    """Values a ``step`` apart, in promtool's notation, by series."""
    after: str
    """When it is looked."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the alert that then fires, without its severity."""
    step: str = "1m"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule."""

    name: str
    expr: str
    runbook: str
    """Name of its page of docs/runbooks."""
    severity: Severity
    means: str
    """What is wrong, and for whom."""
    panel: tuple[str, str]
    """Dashboard and panel to look at."""
    action: str
    """The first thing to do."""
    fires: Case
    quiet: Case
    """The same system when it is well, or nearly not."""
    lasts: str = "0m"
    """How long it must be so."""

    def rule(self, runbooks: str = RUNBOOKS) -> dict[str, object]:
        """As Prometheus reads it."""
        rule: dict[str, object] = {"alert": self.name, "expr": self.expr}
        if self.lasts != "0m":
            rule["for"] = self.lasts
        rule["labels"] = {"severity": self.severity}
        rule["annotations"] = self.annotations(runbooks)
        return rule

    def annotations(self, runbooks: str = RUNBOOKS) -> dict[str, str]:
        """What whoever is called reads."""
        return {
            "summary": self.means,
            "panel": " / ".join(self.panel),
            "action": self.action,
            "runbook_url": f"{runbooks}/{self.runbook}.md",
        }
