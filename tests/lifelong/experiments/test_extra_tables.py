from __future__ import annotations

from typing import Any

from lifelong.experiments import extra_tables


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row for row in rows if len(row) > 1}


def test_times_become_columns() -> None:
    serving = {"B": 3000, "L": 1000, "methods": {"ENCODE": {"ms": 1.234, "ratio": 0.5}}}
    found = extra_tables.columns({"serving": serving})
    assert {header: cell("ENCODE") for header, cell in found.items()} == {
        "ms, B = 3,000, L = 1,000": "1.23",
        "of DIN-L": "0.50\u00d7",
    }


def test_a_method_that_could_not_be_timed_is_told() -> None:
    methods = {"ENCODE": {"error": "it broke"}}
    serving = {"B": 3000, "L": 1000, "M": 50, "machine": "mine", "methods": methods}
    found = extra_tables.columns({"serving": serving})
    assert [cell("ENCODE") for cell in found.values()] == [extra_tables.NONE, extra_tables.NONE]
    assert "ENCODE could not be timed: it broke" in extra_tables.parts({"serving": serving})


def test_ri_is_a_column_over_seeds() -> None:
    results = [{"methods": {"ENCODE": {"ri": ri}, "DIN": {"ri": None}}} for ri in (6.0, 7.0)]
    cell = extra_tables.columns({"relevance": results})["RI"]
    assert (cell("ENCODE"), cell("DIN")) == ("6.50 ± 0.71", extra_tables.NONE)


def test_a_clustering_s_time_stands_in_its_row() -> None:
    clustering = {"L": 1000, "methods": {"dynamic-routing": {"ms": 2.5}}}
    cell = extra_tables.columns({"clustering": clustering})["ms a user of 1,000 behaviors"]
    assert (cell("Dynamic routing"), cell("DIN-L")) == ("2.500", extra_tables.NONE)


def consistency(hits: float) -> dict[str, Any]:
    search = {
        "sizes": [10, 20],
        "hits": [5.0, hits],
        "chance": [1.0, 2.0],
        "hits_at_top": hits,
        "returned_at_top": 20.0,
        "filled_at_top": hits,
    }
    return {"top": 20, "methods": {"TWIN": search, "SDIM": {"hits": None, "reason": "no search"}}}


def test_hits_are_a_mean_over_seeds() -> None:
    (text,) = extra_tables.parts({"consistency": [consistency(18.0), consistency(20.0)]})
    found = cells(text)
    assert found["TWIN"] == ["TWIN", "19.0 ± 1.4", "20.0 ± 0.0", "19.0 ± 1.4", "2.0 ± 0.0"]
    assert found["SDIM"][1] == "no search"


def staleness(lost: float) -> dict[str, Any]:
    measures = {
        "fresh": {"auc": 0.8},
        "longer": {"auc": 0.81},
        "attended": {"auc": 0.8 - lost},
        "recent": {"auc": 0.79},
        "unseen": {"auc": 0.7},
    }
    interval = {"fresh": {"auc": {"low": -0.02, "high": 0.01}}}
    stale = [
        {
            "n": 10,
            "requests": 900,
            "measures": measures,
            "differences": {"attended": interval},
        },
        {"n": 1000, "requests": 3, "note": "3 of 900 requests are long enough"},
    ]
    return {"runs": {"ENCODE": {"stale": stale}}}


def test_staleness_is_told_as_what_it_loses() -> None:
    text = extra_tables.parts({"staleness": [staleness(0.01), staleness(0.03)]})
    row = cells(text[1])["10"]
    assert row[1:] == [
        "900",
        "0.8000 ± 0.0000",
        "-0.0300",
        "-0.0200 (-0.0200 to +0.0100)",
        "-0.0100",
        "-0.1000",
    ]


def test_what_could_not_be_measured_is_said() -> None:
    text = "\n".join(extra_tables.parts({"staleness": [staleness(0.01)]}))
    assert "n = 1,000: 3 of 900 requests are long enough." in text


def test_warm_starts_are_told_along_the_stream() -> None:
    def part(low: int, high: int, warm: float) -> dict[str, Any]:
        return {
            "warm_starts": [low, high],
            "objective": {"warm": warm, "cold": 0.9},
            "auc": {"warm": 0.7, "cold": 0.71},
            "cpu_ms": {"warm": 0.02, "cold": 0.05},
        }

    stream = {
        "step": 8,
        "users": 50,
        "along": [part(0, 0, 0.9), part(1, 1, 0.89)],
        "end": part(1, 90, 0.88),
    }
    text = extra_tables.parts({"warm-starts": {"runs": {"ENCODE": {"streams": [stream]}}}})
    found = cells(text[1])
    assert found["1 to 90"][1:3] == ["0.8800", "0.9000"]
    assert list(found)[2:] == ["0", "1", "1 to 90"]
