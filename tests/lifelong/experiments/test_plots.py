from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import SettingsError
from lifelong.experiments.plots import EXTRAS, draw

Table = dict[str, Any]

UNSURE: Table = {"observed": -0.001, "low": -0.002, "high": 0.001, "p": 0.2}


def row(label: str, auc: float, x: float | None = None, method: str = "") -> Table:
    aucs = [auc, auc + 0.002, auc - 0.001]
    once = [value - 0.01 for value in aucs]
    return {
        "label": label,
        "method": method or label,
        "x": x,
        "learning_rate": 0.003,
        "epochs": [2, 3, 1],
        "curves": [[once[0], auc], [*once[:2], auc], [auc, once[2]]],
        "one_epoch": {"auc": once, "gauc": once},
        "converged": {"auc": aucs, "gauc": aucs},
        "difference": None if label == "DIN-L" else {"auc": UNSURE},
    }


def table(name: str, *rows: Table, **more: Any) -> Table:
    return {
        "name": name,
        "title": "All methods",
        "source": "ENCODE, Table 2",
        "figure": "bars",
        "x_name": None,
        "setup": "ml-1m-next-item",
        "setup_title": "MovieLens 1M, next item",
        "scale": "small",
        "data": {"users": 600, "items": 3500, "training": 9000, "test": 3000, "L": 200, "M": 16},
        "seeds": 3,
        "reference": "DIN-L",
        "rows": list(rows),
        "extras": {},
    } | more


METHODS = (row("DIN-L", 0.885), row("TWIN w/o Para-Con", 0.88), row("ENCODE", 0.886))


def hits(found: list[float]) -> Table:
    sizes = [5, 20, 200]
    return {"sizes": sizes, "hits": found, "chance": [0.5, 2.0, 20.0], "hits_at_top": found[1]}


def stale(n: int, *lost: float) -> Table:
    variants = ("fresh", "attended", "longer", "recent", "unseen")
    measures = {name: {"auc": 0.9 - by} for name, by in zip(variants, (0.0, *lost), strict=True)}
    return {"n": n, "requests": 100, "measures": measures}


def started(least: int, most: int, auc: float | None) -> Table:
    both = {"warm": auc, "cold": auc}
    return {"warm_starts": [least, most], "objective": {"warm": 0.9, "cold": 0.91}} | dict.fromkeys(
        ("stays", "auc"), both
    )


MEASURED: Table = {
    "serving": {
        "B": 3000,
        "methods": {
            "DIN-L": {"ms": 3.4, "ratio": 1.0},
            "TWIN w/o Para-Con": {"error": "cannot be exported"},
            "ENCODE": {"ms": 1.5, "ratio": 0.45},
        },
    },
    "speed": {"methods": {"DIN-L": {"training_ratio": 1.0}, "ENCODE": {"training_ratio": 2.2}}},
    "clustering": {"L": 1000, "methods": {"k-means": {"ms": 1.1}, "random": {"ms": 0.1}}},
    "relevance": [
        {
            "reference": "DIN-L",
            "top": 20,
            "smoothing": 0.01,
            "least": 0.5,
            "uniform": 1.2,
            "methods": {
                "DIN-L": {"ri": 0.5, "hit_rate": None},
                "ETA": {"ri": ri, "hit_rate": 0.4},
                "AvgPooling": {"ri": None, "reason": "it weighs no behaviors"},
            },
        }
        for ri in (0.9, 0.91, None)
    ],
    "consistency": [
        {"top": 20, "methods": {"TWIN": hits([5, by, 20]), "SIM hard": hits([2, 4, 6])}}
        | {"DIN-L": {"hits": None, "reason": "it has no search stage"}}
        for by in (19.0, 18.5)
    ],
    "weights": {
        "cosine": [-1.0, 0.0, 1.0],
        "curves": {"SDIM, τ = 3": [0.0, 0.1, 1.0], "target attention": [0.02, 0.14, 1.0]},
        "edges": [-1.0, 0.0, 1.0],
        "methods": {
            "SDIM": {"weight": [None, 1.1], "behaviors": [0.0, 1.0], "expected": [None, 1.0]},
            "AvgPooling": {"weight": None, "reason": "it weighs no behaviors"},
        },
    },
    "staleness": [
        {
            "most_newer": 1000,
            "runs": {
                "ENCODE": {
                    "stale": [
                        stale(10, 0.001, -0.001, 0.004, 0.02),
                        stale(100, 0.002, -0.001, 0.006, 0.04),
                        {"n": 1000, "requests": 2, "note": "too few"},
                    ]
                }
            },
        }
    ],
    "warm-starts": {
        "runs": {
            "ENCODE": {
                "K": 30,
                "iterations": {"warm": 3, "cold": 15},
                "streams": [
                    {
                        "step": 8,
                        "all": {"differences": {"auc": UNSURE}},
                        "along": [started(0, 0, None), started(1, 3, 0.88)],
                    },
                    {"step": 64, "users": 0, "note": "no request has as many"},
                ],
            },
            "DIN-L": {"note": "it does not cluster by k-means"},
        }
    },
}


def names(written: list[str]) -> set[str]:
    return {Path(path).name for path in written}


def both(*stems: str) -> set[str]:
    return {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}


def test_methods_are_drawn_with_their_curves(tmp_path: Path) -> None:
    written = draw(table("encode-table-2", *METHODS), tmp_path / "new")

    assert names(written) == both("encode-table-2", "encode-table-2-curves")
    assert all(Path(path).stat().st_size > 5000 for path in written)


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [each | {"curves": []} for each in METHODS]
    extras = {"serving": MEASURED["serving"]}
    found = table("encode-table-2", *rows, figure="none", extras=extras)

    first, second = (draw(found, tmp_path / name) for name in ("one", "two"))

    assert names(first) == names(second)
    for one, other in zip(first, second, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_settings_are_drawn_as_lines_beside_the_reference(tmp_path: Path) -> None:
    rows = [
        row(f"{method}, L = {L}", 0.88 + L / 1e5, L, method)
        for method in ("ENCODE", "TWIN", "ETA")
        for L in (25, 200)
    ]
    rows = [each | {"curves": []} for each in (*rows, row("DIN-L", 0.885))]
    found = table("figure", *rows, figure="line", x_name="L")
    found["data"]["L"] = None  # where lengths are compared

    written = draw(found, tmp_path)

    assert names(written) == both("figure")
    assert "DIN-L" in Path(written[1]).read_text()  # each text stands beside its paths


@pytest.mark.parametrize("kind", EXTRAS)
def test_what_else_is_measured_is_drawn(kind: str, tmp_path: Path) -> None:
    rows = (*METHODS, row("k-means", 0.886, method="ENCODE"))
    found = table("other", *rows, figure="none", extras={kind: MEASURED[kind]})
    for each in found["rows"]:
        each["curves"] = []

    assert names(draw(found, tmp_path)) == both("other")


def test_extras_stand_beside_a_tables_own_figure(tmp_path: Path) -> None:
    extras = {"relevance": MEASURED["relevance"], "not-drawn": {}}
    found = table("encode-table-3", METHODS[0] | {"curves": []}, extras=extras)

    assert names(draw(found, tmp_path)) == both("encode-table-3", "encode-table-3-relevance")


@pytest.mark.parametrize("figure", ["bars", "line"])
def test_missing_values_leave_gaps(figure: str, tmp_path: Path) -> None:
    few, unmeasured = (row(name, 0.88, x) for x, name in enumerate("ab", start=1))
    few |= {"converged": {"auc": [0.88]}, "difference": None}
    unmeasured |= {"converged": {}, "one_epoch": {}, "curves": [], "difference": None}
    found = table("gaps", few, unmeasured, figure=figure, data=None, seeds=1)

    assert names(draw(found, tmp_path)) == both("gaps", "gaps-curves")


@pytest.mark.parametrize("figure", ["bars", "line", "none"])
def test_nothing_measured_is_nothing_drawn(figure: str, tmp_path: Path) -> None:
    nothing: Table = {"serving": {"B": 3000, "methods": {}}, "staleness": [], "relevance": []}

    assert draw(table("empty", figure=figure, extras=nothing), tmp_path) == []


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match=r"--out .*file.*cannot be written.*writable") as raised:
        draw(table("encode-table-2", METHODS[0]), tmp_path / "file")

    assert "\n" not in str(raised.value)
