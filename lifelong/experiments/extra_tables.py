"""What is measured beside quality, as columns of a table and as parts of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Final

Result = Mapping[str, Any]

NONE: Final = "–"

CLUSTERINGS: Final = {
    "Random": "random",
    "Dynamic routing": "dynamic-routing",
    "Agglomerative": "agglomerative",
    "k-means": "k-means",
}
"""Labels of ENCODE's Table 7, and what they are called in a configuration."""

SMOOTHED: Final = (
    "RI mixes all weights with a share of equal ones, or a behavior that a search leaves out would"
    " make it infinite; for searches it depends on that share:"
)
STALE: Final = {
    ("attended", "longer"): "newer ones attended to, against fresh interests of as many behaviors",
    ("attended", "fresh"): "the same, against fresh interests",
    ("recent", "fresh"): "newer ones not in the interests",
    ("unseen", "fresh"): "newer ones not seen at all",
}
"""What becomes of behaviors newer than the interests, and what that is compared with."""


def columns(extras: Mapping[str, Any]) -> dict[str, Callable[[str], str]]:
    """Columns that extras add to a table: by header, what stands in the row of a label."""
    found: dict[str, Callable[[str], str]] = {}
    if serving := extras.get("serving"):
        methods = serving["methods"]
        found[f"ms, B = {serving['B']:,}, L = {serving['L']:,}"] = lambda label: _number(
            methods, label, "ms", "{:.2f}"
        )
        found["of DIN-L"] = lambda label: _number(methods, label, "ratio", "{:.2f}×")
    if speed := extras.get("speed"):
        faster = speed["methods"]
        found["training speed"] = lambda label: _number(faster, label, "training_ratio", "{:.1f}×")
        found["inference speed"] = lambda label: _number(
            faster, label, "inference_ratio", "{:.1f}×"
        )
    if clustering := extras.get("clustering"):
        ways = clustering["methods"]
        header = f"ms a user of {clustering['L']:,} behaviors"
        found[header] = lambda label: _number(ways, CLUSTERINGS.get(label, ""), "ms", "{:.3f}")
    if relevance := extras.get("relevance"):
        found["RI"] = lambda label: spread(
            [result["methods"].get(label, {}).get("ri") for result in relevance], 2
        )
    return found


def parts(extras: Mapping[str, Any]) -> list[str]:
    """Parts of a page, in Markdown."""
    written = []
    for kind, write in _PARTS.items():
        if kind in extras:
            written += write(extras[kind])
    return written


def spread(values: Iterable[float | None], digits: int = 4) -> str:
    """Mean and standard deviation over seeds; those that have none do not count.

    >>> spread([0.5, None, 0.7])
    '0.6000 ± 0.1414'
    """
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    mean = f"{fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {stdev(known):.{digits}f}"


def lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(lines(["", "AUC"], [["DIN", "0.7"]]))
    |  | AUC |
    | --- | --- |
    | DIN | 0.7 |
    """
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)
    )


def _number(methods: Mapping[str, Any], label: str, key: str, form: str) -> str:
    value = methods.get(label, {}).get(key)
    return NONE if value is None else form.format(value)


def _serving(result: Result) -> list[str]:
    said = (
        "Times are processor time of one core, at the papers' sizes"
        f" (L = {result['L']:,}, M = {result['M']}, k of each method): {result['machine']}."
    )
    failed = {label: each["error"] for label, each in result["methods"].items() if "error" in each}
    return [said, *(f"{label} could not be timed: {error}" for label, error in failed.items())]


def _relevance(results: Sequence[Result]) -> list[str]:
    first = results[0]
    shares = [f"{by['smoothing']:g}" for by in first["by_smoothing"]]
    places = range(len(shares))
    rows = [
        [name, *(spread([each["by_smoothing"][p][key] for each in results], 2) for p in places)]
        for key, name in (("least", "DIN-L itself"), ("uniform", "equal weights"))
    ]
    rows += [
        [
            label,
            *(
                spread([_of(each, label)["ri_by_smoothing"][p] for each in results], 2)
                for p in places
            ),
        ]
        for label, found in first["methods"].items()
        if found.get("ri") is not None and label != first["reference"]
    ]
    return [SMOOTHED, lines(["RI by smoothing", *shares], rows)]


def _of(result: Result, label: str) -> Result:
    found: Result = result["methods"].get(label) or {}
    return found


def _consistency(results: Sequence[Result]) -> list[str]:
    top = results[0]["top"]
    rows = []
    for label, found in results[0]["methods"].items():
        each = [_of(result, label) for result in results]
        if found.get("hits") is None:
            rows.append([label, found.get("reason", NONE), NONE, NONE, NONE])
            continue
        chance = [_chance(one, top) for one in each]
        rows.append(
            [
                label,
                spread([one["hits_at_top"] for one in each], 1),
                spread([one["returned_at_top"] for one in each], 1),
                spread([one["filled_at_top"] for one in each], 1),
                spread(chance, 1),
            ]
        )
    header = [
        "",
        f"of the attention's top {top}, found by a search for {top}",
        "behaviors returned",
        "hits if the newest fill the rest",
        "by chance",
    ]
    return [lines(header, rows)]


def _chance(found: Result, size: int) -> float | None:
    sizes = found["sizes"]
    value: float | None = found["chance"][sizes.index(size)] if size in sizes else None
    return value


def _weights(result: Result) -> list[str]:
    rows = []
    for label, found in result["methods"].items():
        if sampling := found.get("sampling"):
            for m, probability, weight in zip(
                sampling["m"], sampling["probability"], sampling["weight"], strict=True
            ):
                rows.append([label, str(m), f"{probability:.3f}", f"{weight:.3f}"])
    if not rows:
        return []
    header = ["", "hashes m", "error of a collision probability", "error of a weight × L"]
    return [
        "What few hash functions cost: mean absolute error against the expectation (Eq. 13).",
        lines(header, rows),
    ]


def _staleness(results: Sequence[Result]) -> list[str]:
    written = []
    for label in results[0]["runs"]:
        runs = [result["runs"][label] for result in results]
        rows, notes = [], []
        for place, stale in enumerate(runs[0]["stale"]):
            if "note" in stale:
                notes.append(f"n = {stale['n']:,}: {stale['note']}.")
                continue
            each = [run["stale"][place] for run in runs]

            def auc(variant: str, each: list[Result] = each) -> list[float]:
                return [one["measures"][variant]["auc"] for one in each]

            fresh = auc("fresh")
            rows.append(
                [
                    f"{stale['n']:,}",
                    f"{stale['requests']:,}",
                    spread(fresh),
                    *(
                        f"{fmean(auc(variant)) - fmean(auc(against)):+.4f}"
                        f"{_interval(each, variant, against)}"
                        for variant, against in STALE
                    ),
                ]
            )
        header = ["n behaviors old", "requests", "fresh AUC", *STALE.values()]
        written += [f"**{label}**, change of AUC:", lines(header, rows)]
        written += notes
    return [
        *written,
        "In brackets the 95 % interval by resampling users, its ends averaged over seeds.",
    ]


def _interval(each: Sequence[Result], variant: str, against: str) -> str:
    """The mean over seeds of the intervals' ends."""
    found = [one["differences"].get(variant, {}).get(against, {}).get("auc") for one in each]
    known = [one for one in found if one and one["low"] is not None]
    if not known:
        return ""
    low, high = (fmean([one[end] for one in known]) for end in ("low", "high"))
    return f" ({low:+.4f} to {high:+.4f})"


def _warm_starts(result: Result) -> list[str]:
    written = []
    for label, run in result["runs"].items():
        if "note" in run:
            written.append(f"{label}: {run['note']}.")
            continue
        for stream in run["streams"]:
            if "note" in stream:
                written.append(f"{label}, every {stream['step']}: {stream['note']}.")
                continue
            rows = [
                [
                    _range(part["warm_starts"]),
                    *(
                        spread([part[key][start]], digits)
                        for key, digits in (("objective", 4), ("auc", 4), ("cpu_ms", 3))
                        for start in ("warm", "cold")
                    ),
                ]
                for part in [*stream["along"], stream["end"]]
            ]
            header = [
                "warm starts in a row",
                "cosine to center: warm",
                "cold",
                "AUC: warm",
                "cold",
                "ms: warm",
                "cold",
            ]
            title = (
                f"**{label}**, {stream['users']} users with the longest sequences, every"
                f" {stream['step']} behaviors; last, each user's last clustering:"
            )
            written += [title, lines(header, rows)]
    return written


def _range(ends: Sequence[int]) -> str:
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


_PARTS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "serving": _serving,
    "relevance": _relevance,
    "consistency": _consistency,
    "weights": _weights,
    "staleness": _staleness,
    "warm-starts": _warm_starts,
}
