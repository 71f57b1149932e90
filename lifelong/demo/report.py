"""What the demo prints when it has run: its figures, and one user in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from lifelong.machine import machine
from lifelong.portrait import Portrait


def show(console: Console, report: dict[str, Any], portrait: Portrait) -> None:
    """Print figures, qualities and the portrait."""
    console.print()
    console.print(_figures(report))
    console.print(_qualities(report))
    console.print(_probabilities(report))
    console.print(f"On {machine()}; broker: {report['broker']}.", highlight=False)
    console.print()
    _show_portrait(console, portrait)


def show_systems(console: Console, reports: Mapping[str, dict[str, Any]]) -> None:
    """Print the figures of several systems on the same stream and requests, a column for each."""
    table = Table(title="Side by side; pairs are p50 and p99", title_justify="left")
    table.add_column("")
    for name in reports:
        table.add_column(name.upper(), justify="right", no_wrap=True)
    columns = [_in_short(report) for report in reports.values()]
    for row in columns[0]:
        table.add_row(row, *(column[row] for column in columns))
    console.print()
    console.print(table)
    rules = next(iter(reports.values()))
    console.print(
        f"Bought before, most often first: AUC {rules['auc_repeat']:.4f}; popularity:"
        f" {rules['auc_popularity']:.4f}. On {machine()}; broker: {rules['broker']}.",
        highlight=False,
    )


def show_addresses(console: Console, where: dict[str, str]) -> None:
    """Print what is where and what to try; all on this machine."""
    event = (
        f'{{"event_id":"try-1","user_id":"{where["user"]}","item_id":"{where["item"]}",'
        '"action":"purchase","event_time":\'$(date +%s000)\'}'
    )
    lines = (
        "Everything is still running; Ctrl-C ends it.",
        f"  scorer   {where['scorer']}/v2/health/ready   metrics {where['scorer']}/metrics",
        f"  worker   {where['worker']}/health/ready   metrics {where['worker']}/metrics",
        f"  kafka    {where['kafka']}   topic {where['topic']}",
        f"  store    {where['store']}",
        "Try:",
        f"  curl -s {where['scorer']}/v1/rank -H 'Content-Type: application/json' \\",
        f'    -d \'{{"user":"{where["user"]}","candidates":["{where["item"]}","22423"]}}\'',
        f"  lifelong inspect {where['user']} --store {where['store']}",
        f"An event, keyed by its user, onto {where['topic']}:",
        f"  {event}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _figures(report: dict[str, Any]) -> Table:
    table = Table(title="What happened", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "events": f"{report['events']:,} into {report['sequences']:,} sequences",
        "lost / doubled": f"{report['lost']} / {report['doubled']}",
        "events a second": f"{report['events_per_second']:,.0f}",
        "in rankings": f"p50 {report['freshness_p50_s']:.2f} s,"
        f" p99 {report['freshness_p99_s']:.2f} s from an event sent to rankings that count it",
        "in the clusters": _clustered(report),
        "requests": f"{report['requests']:,}, {report['requests_per_second']:,.0f} a second",
        "latency, 100 candidates": _latency(report, 100),
        "latency, 3,000 candidates": _latency(report, 3000),
        "memory": f"worker {report['worker_memory_bytes'] / 1e6:.0f} MB,"
        f" scorer {report['scorer_memory_bytes'] / 1e6:.0f} MB",
        "served against evaluated": f"CTRs differ by {report['max_ctr_difference']:.1e} at most",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _in_short(report: dict[str, Any]) -> dict[str, str]:
    """Figures for a narrow column, by what they are; two are p50 and p99."""

    def pair(first: float | None, second: float | None, digits: int) -> str:
        if first is None or second is None:
            return "-"
        return f"{first:,.{digits}f} / {second:,.{digits}f}"

    def latency(size: int) -> str:
        name = "rank_p{}_ms_" + str(size)
        return pair(report.get(name.format(50)), report.get(name.format(99)), 1)

    return {
        "lost / doubled": f"{report['lost']} / {report['doubled']}",
        "events a second": f"{report['events_per_second']:,.0f}",
        "in rankings, s": pair(report["freshness_p50_s"], report["freshness_p99_s"], 2),
        "in the clusters, s": pair(report["clustered_p50_s"], report["clustered_p99_s"], 2),
        "requests a second": f"{report['requests_per_second']:,.0f}",
        "100 candidates, ms": latency(100),
        "3,000 candidates, ms": latency(3000),
        "memory, worker and scorer, MB": pair(
            report["worker_memory_bytes"] / 1e6, report["scorer_memory_bytes"] / 1e6, 0
        ),
        "AUC, live": f"{report['auc_live']:.4f}",
        "AUC, offline": f"{report['auc_offline']:.4f}",
        "hit rate at 10, live": f"{report['hit10_live']:.4f}",
        "CTRs differ by, at most": f"{report['max_ctr_difference']:.1e}",
    }


def _clustered(report: dict[str, Any]) -> str:
    p50, p99 = report["clustered_p50_s"], report["clustered_p99_s"]
    if p50 is None:
        return "nothing is clustered: a request reads the behaviors themselves"
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s from a segment sealed to interests that cover it"


def _latency(report: dict[str, Any], size: int) -> str:
    if f"rank_p50_ms_{size}" not in report:
        return "not asked"
    p50, p99 = report[f"rank_p50_ms_{size}"], report[f"rank_p99_ms_{size}"]
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def _qualities(report: dict[str, Any]) -> Table:
    table = Table(title="The item bought next, among 100", title_justify="left")
    table.add_column("ranked by")
    table.add_column("AUC", justify="right")
    table.add_column("hit rate at 10", justify="right")
    names = {
        "live": "the service, live",
        "offline": "the same model, offline",
        "repeat": "bought before, most often first",
        "popularity": "popularity",
    }
    for key, name in names.items():
        table.add_row(name, f"{report[f'auc_{key}']:.4f}", f"{report[f'hit10_{key}']:.4f}")
    return table


def _probabilities(report: dict[str, Any]) -> Table:
    table = Table(title="CTRs as probabilities, live", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    calibration, unknown = report["calibration"], report["unknown"]
    ranks = unknown["ranks"]
    error, ratio = (
        calibration[name] for name in ("expected_calibration_error", "predicted_over_observed")
    )
    table.add_row(
        "all candidates",
        f"expected calibration error {error:.4f}, predicted / observed {ratio:.2f}",
    )
    if unknown["candidates"]:
        table.add_row(
            "unknown candidates",
            f"{unknown['candidates']:,}, {unknown['positives']:,} of them bought: predicted"
            f" {unknown['predicted']:.4f}, observed {unknown['observed']:.4f}",
        )
    table.add_row(
        "an unknown item",
        f"among the {ranks['among']} most popular: rank {ranks['median']:.0f} at the median,"
        f" first for {ranks['first']:.0%} of {ranks['users']:,} users",
    )
    return table


def _show_portrait(console: Console, portrait: Portrait) -> None:
    table = Table(
        title=f"User {portrait.user}: {portrait.events} purchases, largest interests",
        title_justify="left",
    )
    table.add_column("weight", justify="right")
    table.add_column("most typical")
    for interest in portrait.interests:
        table.add_row(f"{interest.share:.1%}", ", ".join(interest.items))
    console.print(table)
    ranking = Table(title="Ranked first for this user", title_justify="left")
    ranking.add_column("CTR", justify="right")
    ranking.add_column("product")
    for title, ctr in portrait.ranked:
        ranking.add_row(f"{ctr:.3f}", title)
    console.print(ranking)
