"""What a Prometheus tells over its HTTP API: series over a time, and alerts."""

from __future__ import annotations

import http.client
import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from infra.errors import PrometheusError, one_line

TIMEOUT_S: Final = 30.0


class Series(NamedTuple):
    """One series of an answer."""

    labels: Mapping[str, str]
    times: Sequence[float]
    """Seconds since epoch."""
    values: Sequence[float]
    """As many; NaN where Prometheus says so."""

    @property
    def told(self) -> bool:
        """Whether it holds any number."""
        return not all(map(math.isnan, self.values))


class Span(NamedTuple):
    """A time to ask about."""

    start: float
    end: float
    """Seconds since epoch."""
    step: float
    """Seconds from one value to the next."""


def ask(url: str, expr: str, span: Span) -> list[Series]:
    """The series of an expression over a time.

    Raises:
        PrometheusError: it does not answer, or refuses the expression.
    """
    wanted = {"query": expr, "start": span.start, "end": span.end, "step": span.step}
    return parse_matrix(_get(url, "query_range", wanted))


def firing(url: str) -> list[dict[str, str]]:
    """The labels of each alert that fires now.

    Raises:
        PrometheusError: it does not answer.
    """
    return parse_firing(_get(url, "alerts", {}))


def fill(expr: str, window_s: float, range_s: float) -> str:
    """An expression of a dashboard for all instances, its variables filled in as by Grafana.

    Args:
        expr: the expression.
        window_s: the time over which rates are taken.
        range_s: the time that is shown.

    >>> fill('rate(x{instance=~"$instance"}[$__rate_interval])', 60, 3600)
    'rate(x{instance=~".*"}[60s])'
    """
    values = {
        "$__rate_interval": f"{math.ceil(window_s)}s",
        "$__range": f"{math.ceil(range_s)}s",
        "$instance": ".*",
    }
    return re.sub(r"\$\w+", lambda variable: values[variable.group()], expr)


def legend(form: str, labels: Mapping[str, str]) -> str:
    """A series' name in a legend.

    >>> legend("{{instance}} {{pid}}", {"instance": "w1"}), legend("{{job}}", {})
    ('w1', 'all')
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), form).strip() or "all"


def parse_matrix(data: Mapping[str, Any]) -> list[Series]:
    """What the API says of a range.

    >>> found = {"metric": {"job": "a"}, "values": [[10.0, "1.5"], [11.0, "NaN"]]}
    >>> parse_matrix({"resultType": "matrix", "result": [found]})
    [Series(labels={'job': 'a'}, times=[10.0, 11.0], values=[1.5, nan])]
    """
    return [
        Series(
            {key: value for key, value in one["metric"].items() if key != "__name__"},
            [float(time) for time, _ in one["values"]],
            [float(value) for _, value in one["values"]],
        )
        for one in data["result"]
    ]


def parse_firing(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the API says of alerts, those left out that only may come to fire.

    >>> alerts = [{"labels": {"alertname": name}, "state": name} for name in ("firing", "pending")]
    >>> parse_firing({"alerts": alerts})
    [{'alertname': 'firing'}]
    """
    return [dict(alert["labels"]) for alert in data["alerts"] if alert["state"] == "firing"]


def _get(url: str, what: str, wanted: Mapping[str, object]) -> Any:
    place = f"{url.rstrip('/')}/api/v1/{what}?{urlencode(wanted)}"
    try:
        with urllib.request.urlopen(place, timeout=TIMEOUT_S) as answer:  # noqa: S310 - as given
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise PrometheusError(f"Prometheus at {url}: {_reason(error)}") from error
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        raise PrometheusError(
            f"no Prometheus answers at {url} ({one_line(error)}): name one, as in"
            " http://127.0.0.1:9090"
        ) from error


def _reason(error: urllib.error.HTTPError) -> str:
    """What a refusal says of itself."""
    try:
        return one_line(json.load(error)["error"])
    except (ValueError, KeyError):
        return one_line(error)
