"""The tables: which methods they compare, against what, and what else they measure.

A *method* is tuned by itself: each learning rate of the setup is tried, and validation decides. A
*variant* of it differs in what the table is about, and takes its method's learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from infra.errors import SettingsError, hint

METHODS: Final[Mapping[str, Mapping[str, Any]]] = {
    "DIN": {"network": "din"},
    "AvgPooling": {"network": "avg-pooling"},
    "DIN-L": {"network": "din-l"},
    "SIM hard": {"network": "sim", "search": "hard"},
    "SIM soft": {"network": "sim", "search": "soft"},
    "UBR4CTR": {"network": "ubr4ctr"},
    "ETA": {"network": "eta"},
    "TWIN": {"network": "twin"},
    "SDIM": {"network": "sdim"},
    "ENCODE": {"network": "encode", "beta_mode": "divide", "beta": 20.0, "sized": False},
    "ENCODE, by size": {"network": "encode", "beta_mode": "learned", "beta": 2.0, "sized": True},
    "SIM cluster": {"network": "sim", "search": "cluster"},
    "SIM cluster+": {"network": "sim", "search": "cluster+"},
}
"""Methods by their papers' names: their section ``long_term``. "ENCODE" is as the paper writes it,
"ENCODE, by size" as it is here by default."""

REFERENCE: Final = "DIN-L"
"""What methods are compared with, and their weights of behaviors."""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    label: str
    method: str
    """Key of `METHODS`: whose learning rate it has."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Where its ``long_term`` differs from the method's."""
    x: float | None = None
    """Place on the figure's axis, where there is one."""
    needs: Literal["", "behavior"] = ""
    """What the setup's schema must name for the row to make sense."""
    known: bool = False
    """Whether its network sees what else is known: rates, and the actions of behaviors."""

    @property
    def long_term(self) -> dict[str, Any]:
        """Section ``long_term`` of the row's configuration."""
        return {**METHODS[self.method], **self.changes}


@dataclass(frozen=True)
class Extra:
    """A measurement beside quality."""

    kind: str
    """Key of `OF_RUNS` or `TIMINGS` in `lifelong.experiments.runner`."""
    rows: tuple[Row, ...] = ()
    """Methods that it is measured of."""
    each_seed: bool = True
    """Whether it is measured for every seed."""
    timed: bool = False
    """Whether it times fresh networks, with nothing else of the experiment running beside it."""
    published: bool = False
    """Whether methods are as large as their papers have them, whatever the scale."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper, or one of ours."""

    title: str
    source: str
    """Where it stands in which paper."""
    rows: tuple[Row, ...] = ()
    extras: tuple[Extra, ...] = ()
    figure: Literal["bars", "line", "none"] = "bars"
    x_name: str = ""
    reference: str = REFERENCE
    """Label of what differences are taken to: variants are held against their method as it is."""
    not_chosen: tuple[str, ...] = ()
    """Labels of rows that were left out because others were asked for."""

    @property
    def reference_row(self) -> Row:
        """The row with the reference's label, or the method of that name."""
        own = [row for row in self.rows if row.label == self.reference]
        return own[0] if own else Row(self.reference, self.reference)


def _methods(*names: str) -> tuple[Row, ...]:
    return tuple(Row(name, name) for name in names)


def _known(*names: str) -> tuple[Row, ...]:
    return tuple(Row(f"{name}, with rates", name, known=True) for name in names)


def _encode(label: str, **changes: Any) -> Row:
    return Row(label, "ENCODE", changes)


def _by(name: str, key: str, method: str, values: tuple[int, ...], **more: Any) -> tuple[Row, ...]:
    """Rows of a method, one for each value of a hyperparameter."""
    return tuple(Row(f"{name} = {value}", method, {key: value} | more, value) for value in values)


def _lengths(*methods: str) -> tuple[Row, ...]:
    return tuple(
        Row(f"{method}, L = {length}", method, {"L": length}, length)
        for method in methods
        for length in (50, 100, 200)
    )


_ALL: Final = (
    "DIN",
    "AvgPooling",
    "DIN-L",
    "SIM hard",
    "SIM soft",
    "UBR4CTR",
    "ETA",
    "TWIN",
    "SDIM",
    "ENCODE",
    "ENCODE, by size",
)
_TABLE_2: Final = _methods(*_ALL)
_SDIM_TABLE_2: Final = _methods("DIN-L", "DIN", "AvgPooling", "SIM hard", "UBR4CTR", "ETA", "SDIM")
_TWIN: Final = (
    *_methods("DIN-L", "SIM soft", "TWIN"),
    Row("TWIN w/o Para-Con", "TWIN", {"consistent": False}),
    Row("TWIN w/o Bias", "TWIN", {"cross": "none"}, needs="behavior"),
    Row("TWIN w/ Raw MHTA", "TWIN", {"cross": "raw"}, needs="behavior"),
)
_SHARP: Final[Mapping[str, Any]] = {"beta_mode": "multiply", "beta": 5.0}
_MINUS: Final = _encode("ENCODE⁻", online="dot")
_ENCODES: Final = _methods("ENCODE", "ENCODE, by size")
_WEIGHED: Final = _methods("SIM hard", "UBR4CTR", "ETA", "TWIN", "SDIM")

TABLES: Final[Mapping[str, Table]] = {
    "encode-table-2": Table(
        "All methods",
        "ENCODE, Table 2",
        (*_TABLE_2, *_known(*_ALL)),
        (Extra("serving", _TABLE_2, timed=True, published=True),),
    ),
    "encode-beta": Table(
        "β divides, multiplies, or is learned; interests count once or by size",
        "not in the papers; ENCODE, Eqs. 9 and 10",
        (
            *_methods("AvgPooling", "DIN-L"),
            Row("÷ 20", "ENCODE"),
            _encode("× 5", **_SHARP),
            _encode("× 20", beta_mode="multiply"),
            _encode("learned from × 2", beta_mode="learned", beta=2.0),
            _encode("÷ 20, by size", sized=True),
            _encode("× 5, by size", **_SHARP, sized=True),
            _encode("learned from × 2, by size", beta_mode="learned", beta=2.0, sized=True),
        ),
    ),
    "encode-limits": Table(
        "What the metric, the clusters and the projection cost",
        "not in the papers",
        (
            *_methods("DIN-L"),
            _encode("÷ 20, a cluster an item", K=200),
            _encode("× 5, by size, a cluster an item", K=200, sized=True, **_SHARP),
            _encode("× 5, by size, m = 32", m=32, sized=True, **_SHARP),
            _encode("× 5, by size, random clusters", clustering="random", sized=True, **_SHARP),
            _encode("× 5, by size, no loss", loss="none", sized=True, **_SHARP),
            _encode("× 5, by size", sized=True, **_SHARP),
            Row("÷ 20", "ENCODE"),
        ),
        reference="× 5, by size",
    ),
    "encode-table-3": Table(
        "Relevance indicator, and one metric or two",
        "ENCODE, Table 3",
        (*_methods("DIN", "DIN-L"), *_WEIGHED, _MINUS, *_ENCODES),
        (Extra("relevance", (*_methods("DIN-L"), *_WEIGHED, _MINUS, *_ENCODES)),),
    ),
    "encode-table-4": Table(
        "What ETA searches by",
        "ENCODE, Table 4",
        (
            *_methods("DIN", "DIN-L", "ETA"),
            Row("ETA-ENCODE", "ETA", {"retrieval": "encode"}),
            Row("ETA-TA", "ETA", {"retrieval": "attention"}),
        ),
        reference="ETA",
    ),
    "encode-table-5": Table(
        "Where positives and negatives come from",
        "ENCODE, Table 5",
        (
            *_methods("DIN", "DIN-L"),
            _encode("Within neighbors", sampling="neighbors"),
            Row("Within sequence", "ENCODE"),
            _encode("Within batch", sampling="batch"),
        ),
        reference="Within sequence",
    ),
    "encode-table-6": Table(
        "Losses of the projection",
        "ENCODE, Table 6",
        (
            *_methods("DIN", "AvgPooling", "DIN-L"),
            _encode("None", loss="none"),
            _encode("MSE", loss="mse"),
            _encode("N-Pair-MC", loss="n-pair-mc"),
            _encode("Triplets-Fixed", loss="fixed"),
            Row("Triplets-Dynamic", "ENCODE"),
        ),
        reference="Triplets-Dynamic",
    ),
    "encode-table-7": Table(
        "Clusterings",
        "ENCODE, Table 7",
        (
            *_methods("DIN", "DIN-L"),
            _encode("Random", clustering="random"),
            _encode("Dynamic routing", clustering="dynamic-routing"),
            _encode("Agglomerative", clustering="agglomerative"),
            Row("k-means", "ENCODE"),
        ),
        (Extra("clustering", timed=True),),
        reference="k-means",
    ),
    "encode-figure-k": Table(
        "Number of clusters",
        "ENCODE, Fig. 3a",
        _by("K", "K", "ENCODE", (5, 10, 30, 50)),
        figure="line",
        x_name="K",
        reference="K = 30",
    ),
    "encode-figure-m": Table(
        "Width of the projection",
        "ENCODE, Fig. 3b",
        _by("m", "m", "ENCODE", (2, 4, 8, 16)),
        figure="line",
        x_name="m",
        reference="m = 4",
    ),
    "encode-figure-l": Table(
        "Length of the sequence",
        "ENCODE: L; TWIN, Fig. 5",
        _lengths("ENCODE", "DIN-L", "DIN"),  # DIN: what the pair's features gain by length
        figure="line",
        x_name="L",
    ),
    "sdim-table-2": Table(
        "Quality and speed against DIN-L",
        "SDIM, Tables 2 and 3",
        _SDIM_TABLE_2,
        (Extra("speed", _SDIM_TABLE_2, timed=True),),
    ),
    "sdim-table-4": Table(
        "Width of a signature",
        "SDIM, Table 4",
        (
            *_methods("DIN-L"),
            *_by("τ", "tau", "SDIM", (1, 2, 3)),
            *_by("τ", "tau", "SDIM", (5, 10), m=50),
        ),
        figure="line",
        x_name="τ",
        reference="τ = 3",
    ),
    "sdim-figure-5": Table(
        "Number of hashes",
        "SDIM, Fig. 5",
        (
            *_methods("DIN-L"),
            *_by("m", "m", "SDIM", (24, 48, 120)),
            Row("without sampling", "SDIM", {"network": "sdim-expected"}),
        ),
        figure="line",
        x_name="m",
        reference="m = 48",
    ),
    "sdim-figure-2": Table(
        "Weights of hash collisions and of target attention",
        "SDIM, Fig. 2",
        extras=(
            Extra(
                "weights", _methods("DIN-L", "SDIM", "ENCODE", "ENCODE, by size"), each_seed=False
            ),
        ),
        figure="none",
    ),
    "twin-table-4": Table(
        "Two-stage methods",
        "TWIN, Table 4",
        _methods(
            "AvgPooling",
            "DIN",
            "DIN-L",
            "SIM hard",
            "ETA",
            "SIM cluster",
            "SDIM",
            "SIM cluster+",
            "SIM soft",
            "TWIN",
        ),
    ),
    "twin-figure-4": Table(
        "Whether the search finds what the attention would attend to",
        "TWIN, Fig. 4",
        extras=(Extra("consistency", (*_methods("SIM hard", "SIM soft", "ETA", "TWIN"),)),),
        figure="none",
    ),
    "twin-figure-5": Table(
        "Length of the sequence that is searched",
        "TWIN, Fig. 5",
        _lengths("SIM hard", "ETA", "SIM soft", "TWIN"),
        figure="line",
        x_name="L",
    ),
    "twin-figure-6": Table(
        "What TWIN is made of",
        "TWIN, Fig. 6",
        _TWIN,
        (Extra("serving", _TWIN, timed=True, published=True),),
        reference="TWIN",
    ),
    "staleness": Table(
        "Quality against staleness",
        "not in the papers",
        extras=(
            Extra("staleness", _methods("ENCODE, by size")),
            Extra("warm-starts", _methods("ENCODE, by size"), each_seed=False),
        ),
        figure="none",
    ),
}
"""Every table, by the name that the command takes."""


def find_tables(name: str) -> dict[str, Table]:
    """The table of that name; all of them for "all".

    Raises:
        SettingsError: there is none.
    """
    if name == "all":
        return dict(TABLES)
    if name not in TABLES:
        raise SettingsError(f"there is no experiment {name!r}; {hint(name, ['all', *TABLES])}")
    return {name: TABLES[name]}


def choose_rows(tables: Mapping[str, Table], methods: Sequence[str]) -> dict[str, Table]:
    """The tables with the rows of some methods alone; of several tables those that have any.

    Args:
        methods: labels of rows, or methods whose rows are all meant; case does not matter. None:
            the tables as they are.

    Raises:
        SettingsError: no row is of one of them.
    """
    if not methods:
        return dict(tables)
    wanted = {name.casefold() for name in methods}
    known = list(dict.fromkeys(name for row in _rows(tables.values()) for name in _names(row)))
    for name in methods:
        if name.casefold() not in map(str.casefold, known):
            raise SettingsError(f"--method {name}: no row is of it; {hint(name, known)}")

    def part(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(row for row in rows if wanted & set(map(str.casefold, _names(row))))

    chosen = {}
    for name, table in tables.items():
        extras = tuple(replace(extra, rows=part(extra.rows)) for extra in table.extras)
        rows, extras = part(table.rows), tuple(extra for extra in extras if extra.rows)
        others = tuple(row.label for row in table.rows if row not in rows)
        if rows or extras:
            chosen[name] = replace(table, rows=rows, extras=extras, not_chosen=others)
    return chosen


def _rows(tables: Iterable[Table]) -> Iterator[Row]:
    for table in tables:
        yield from table.rows
        for extra in table.extras:
            yield from extra.rows


def _names(row: Row) -> tuple[str, str]:
    return row.label, row.method
