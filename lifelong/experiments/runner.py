"""``lifelong experiment``: the cells of a table, measured in processes beside each other.

First every method is tried with each learning rate, the first seed; then the other seeds, and the
variants with their method's rate; then what else the table measures of the trained runs. A finished
cell is kept at once, so that an interruption costs the cells in flight, and of those only the steps
since their last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import torch
from rich.console import Console
from rich.table import Table as Lines

from infra.errors import SettingsError, TrainingError
from infra.processes import end_with_parent
from lifelong.experiments import (
    attention,
    clustering,
    quality,
    report,
    serving,
    speed,
    staleness,
    warm_starts,
)
from lifelong.experiments.cells import QUALITY, Cell, CellStore, Record, revision
from lifelong.experiments.setups import Scale, Setup, Tree, find_setup
from lifelong.experiments.tables import (
    METHODS,
    REFERENCE,
    TABLES,
    Extra,
    Row,
    Table,
    choose_rows,
    find_tables,
)
from lifelong.learning import read_samples
from models.allocator import keep_freed_memory
from models.config import RunConfig
from models.data.splits import Split

DIFFERENCE: Final = "difference"

Answer = TypeVar("Answer")
Runs = Mapping[str, Path]
Configs = Mapping[str, RunConfig]

OF_RUNS: Final[Mapping[str, Callable[[Runs, Split, Mapping[str, Any]], dict[str, Any]]]] = {
    "relevance": attention.measure_relevance,
    "consistency": attention.measure_consistency,
    "weights": lambda runs, samples, options: (
        attention.weight_curves(options) | attention.measure_weights(runs, samples, options)
    ),
    "staleness": staleness.measure_staleness,
    "warm-starts": warm_starts.measure_warm_starts,
}
"""What is measured of trained runs."""


def _measure_speed(configs: Configs) -> dict[str, Any]:
    return speed.measure_speed(configs, _samples())


TIMINGS: Final[Mapping[str, Callable[[Configs], dict[str, Any]]]] = {
    "serving": serving.measure_serving,
    "speed": _measure_speed,
    "clustering": lambda _configs: clustering.measure_clusterings(),
}
"""What is timed, of fresh networks."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    data: str
    protocol: str | None = None
    seeds: int = 3
    out: Path = Path("runs/experiments")
    scale: Scale = "small"
    processes: int = 0
    """Cells measured at once; 0: one a GPU, or without one, one a core."""
    methods: tuple[str, ...] = ()
    """Labels of rows, or methods whose rows are all meant; none: every row."""


def list_experiments(*, quiet: bool = False) -> dict[str, Any]:
    """What there is, by name; printed unless ``quiet``."""
    found = {name: {"title": table.title, "source": table.source} for name, table in TABLES.items()}
    if not quiet:
        lines = Lines("name", "what", "source")
        for name, table in TABLES.items():
            lines.add_row(name, table.title, table.source)
        Console().print(lines)
    return found


def run_experiment(
    name: str, options: Options, *, quiet: bool = False, context: BaseContext | None = None
) -> dict[str, Any]:
    """Measure what is missing of a table (or of "all"), and write it; the tables' plain values.

    Args:
        name: the table's, or "all".
        options: what the command takes.
        quiet: print nothing.
        context: starts the processes that measure; by default each is a fresh one.

    Raises:
        LifelongError: a name is unknown, or a cell cannot be measured.
    """
    # Here: the pool's processes import this module, and matplotlib would cost each a second.
    from lifelong.experiments.plots import draw

    if options.seeds < 1:
        raise SettingsError(f"--seeds {options.seeds}: take 1 or more")
    tables = choose_rows(find_tables(name), options.methods)
    setup = find_setup(options.data, options.protocol, options.scale)
    directory = options.out / f"{setup.name}{'' if options.scale == 'small' else '-full'}"
    console = Console(stderr=True, quiet=quiet)
    context = context or multiprocessing.get_context("spawn")
    written = {}
    with _CellPool(setup, directory, options, console, context) as cells:
        for key, table in tables.items():
            found = cells.table(key, table)
            found["files"] = report.write(found, directory)
            found["files"] += draw(found, directory)
            written[key] = found
    for found in written.values():
        if not quiet:
            report.show(Console(), found)
    return {"setup": setup.name, "out": str(directory), "tables": written}


class _CellPool:
    """Processes that measure cells (context manager)."""

    def __init__(
        self,
        setup: Setup,
        directory: Path,
        options: Options,
        console: Console,
        context: BaseContext,
    ) -> None:
        self.setup, self.seeds = setup, options.seeds
        self.store = CellStore(setup, directory)
        self.console = console
        self.processes = options.processes or torch.cuda.device_count() or os.cpu_count() or 1
        self.pool = ProcessPoolExecutor(
            self.processes,
            context,
            initializer=_start,
            initargs=(setup, directory),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for process in list((getattr(self.pool, "_processes", None) or {}).values()):
                process.terminate()
        self.pool.shutdown(cancel_futures=True)

    def table(self, name: str, table: Table) -> dict[str, Any]:
        """All that a table says, as plain values."""
        rows = [row for row in table.rows if self._applies(row)]
        asked = [row for extra in table.extras if not extra.timed for row in extra.rows]
        compared = table.reference not in table.not_chosen
        reference = [table.reference_row] if rows and compared else []
        shown = {row.label: row for row in (*rows, *asked, *reference)}
        rates = self._tune({row.method for row in shown.values()})
        trees = {label: self._trees(row, rates) for label, row in shown.items()}
        cells = [_quality(label, tree) for label in trees for tree in trees[label]]
        measured = self._measure(cells)
        return report.compose(
            name,
            table,
            self.setup,
            seeds=self.seeds,
            trained=list(measured.values()),
            rows=self._compare(rows, table.reference if compared else None, trees, rates, measured),
            extras={extra.kind: self._extra(extra, trees) for extra in table.extras},
            left_out=[row.label for row in table.rows if row not in rows],
            not_chosen=table.not_chosen,
        )

    def _compare(
        self,
        rows: Sequence[Row],
        reference: str | None,
        trees: Mapping[str, list[Tree]],
        rates: Mapping[str, float],
        measured: Mapping[str, Record],
    ) -> list[report.RowResult]:
        """The rows, and how they differ from the one of the label ``reference``, if any."""
        differences = {
            row.label: Cell(
                kind=DIFFERENCE,
                label=row.label,
                trees=_roles("first", trees[row.label]) | _roles("second", trees[reference]),
            )
            for row in rows
            if reference is not None and trees[row.label] != trees[reference]
        }
        compared = self._measure(differences.values())
        results = []
        for row in rows:
            keys = [self._key(_quality(row.label, tree)) for tree in trees[row.label]]
            difference = differences.get(row.label)
            results.append(
                report.RowResult(
                    row=row,
                    learning_rate=rates[row.method],
                    records=[measured[key] for key in keys],
                    cells=keys,
                    difference=compared[self._key(difference)].result if difference else None,
                )
            )
        return results

    def _applies(self, row: Row) -> bool:
        if row.known and not self._tells_more(row):
            return False
        return not row.needs or bool(self.setup.tree.get("schema", {}).get(row.needs))

    def _tells_more(self, row: Row) -> bool:
        """Whether a row that sees what else is known sees more than the same without it."""
        trees = (
            self.setup.method_tree(row.long_term, known=known) | {"seed": self.setup.seed}
            for known in (False, True)
        )
        one, other = (self.setup.config(tree) for tree in trees)
        return one != other

    def _tune(self, methods: set[str]) -> dict[str, float]:
        """The learning rate of each method that validates best, first seed."""
        named = [method for method in METHODS if method in methods]
        tries = {
            (method, rate): _at(self.setup.method_tree(METHODS[method]), rate, self.setup.seed)
            for method in named
            for rate in self.setup.rates
        }
        found = self._measure([_quality(method, tree) for (method, _), tree in tries.items()])

        def validated(method: str, rate: float) -> float:
            record = found[self._key(_quality("", tries[method, rate]))]
            return max(float(epoch["validation"]["auc"]) for epoch in record.result["curve"])

        return {
            method: max(self.setup.rates, key=lambda rate: validated(method, rate))
            for method in named
        }

    def _trees(self, row: Row, rates: Mapping[str, float]) -> list[Tree]:
        """A row's configuration, for each seed."""
        tree = self.setup.method_tree(row.long_term, known=row.known)
        first = self.setup.seed
        return [_at(tree, rates[row.method], first + number) for number in range(self.seeds)]

    def _extra(self, extra: Extra, trees: Mapping[str, list[Tree]]) -> Any:
        """What an extra measured, for each seed or once."""
        rows = [row for row in extra.rows if self._applies(row)]
        each = extra.each_seed and not extra.timed
        cells = [
            Cell(
                kind=extra.kind,
                label=extra.kind,
                seed=self.setup.seed + number,
                trees={
                    row.label: self.setup.method_tree(row.long_term, published=extra.published)
                    if extra.timed
                    else trees[row.label][number]
                    for row in rows
                },
                options=dict(extra.options),
            )
            for number in range(self.seeds if each else 1)
        ]
        found = self._measure(cells, alone=extra.timed)
        results = [found[self._key(cell)].result for cell in cells]
        return results if each else results[0]

    def _key(self, cell: Cell) -> str:
        return self.store.key(cell.kind, cell.trees, cell.options)

    def _measure(self, cells: Iterable[Cell], *, alone: bool = False) -> dict[str, Record]:
        """The records of cells, by key; those that are missing are measured."""
        distinct = {self._key(cell): cell for cell in cells}
        found = {}
        for key, cell in distinct.items():
            if (record := self.store.load(cell)) is not None:
                found[key] = record
        missing = [cell for key, cell in distinct.items() if key not in found]
        self._train_again(missing)
        for number, (cell, record) in enumerate(self._run(missing, 1 if alone else 0), 1):
            found[self._key(cell)] = record
            self.console.print(
                f"{self.setup.name}: {cell.kind} {cell.label}, seed {cell.seed}:"
                f" {_told(record)} ({record.seconds:.0f} s, {number} of {len(missing)})",
                highlight=False,
                soft_wrap=True,
            )
        return found

    def _train_again(self, cells: list[Cell]) -> None:
        """Train, each once, what these cells ask and is gone: cells are kept where runs are not."""
        asked = [
            tree
            for cell in cells
            if cell.kind != QUALITY and cell.kind not in TIMINGS
            for tree in cell.trees.values()
        ]
        places = {self.store.run(tree): tree for tree in asked}
        gone = [tree for place, tree in places.items() if not quality.is_trained(place)]
        if gone:
            self.console.print(f"{self.setup.name}: training {len(gone)} networks that are gone")
        for future in [self.pool.submit(_train, tree) for tree in gone]:
            _answer(future)

    def _run(self, cells: list[Cell], limit: int) -> Iterator[tuple[Cell, Record]]:
        """Records as they come; at most so many cells at once (0: as many as processes)."""
        waiting = list(reversed(cells))
        running: dict[Future[Record], Cell] = {}
        while waiting or running:
            while waiting and len(running) < (limit or self.processes):
                cell = waiting.pop()
                running[self.pool.submit(_measure_cell, cell)] = cell
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), _answer(future)


def _answer(future: Future[Answer]) -> Answer:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process ended without a word, for lack of memory perhaps: take fewer --processes;"
            " finished cells are kept"
        ) from error


def _quality(label: str, tree: Tree) -> Cell:
    return Cell(kind=QUALITY, label=label, seed=tree["seed"], trees={"": tree})


def _at(tree: Tree, rate: float, seed: int) -> Tree:
    return tree | {"seed": seed, "training": tree["training"] | {"learning_rate": rate}}


def _roles(name: str, trees: list[Tree]) -> dict[str, Tree]:
    return {f"{name} {number}": tree for number, tree in enumerate(trees)}


def _told(record: Record) -> str:
    if record.kind == QUALITY:
        rate = record.configs[""]["training"]["learning_rate"]
        return f"learning rate {rate:g}: test AUC {record.result['converged']['auc']:.4f}"
    if record.kind == DIFFERENCE:
        return f"AUC {record.result['auc']['observed']:+.4f}"
    return "done"


# What runs in a process of its own.

_here: tuple[Setup, Path]


def _start(setup: Setup, directory: Path) -> None:
    end_with_parent()  # nobody waits for a cell whose command was killed
    global _here  # noqa: PLW0603  # a process of the pool has one setup, for all of its cells
    _here = setup, directory
    torch.set_num_threads(1)
    keep_freed_memory()
    revision()  # as it is now, whatever is checked out meanwhile
    if gpus := torch.cuda.device_count():
        number = multiprocessing.current_process()._identity[0]  # from 1
        os.environ["LOCAL_RANK"] = str((number - 1) % gpus)


@cache
def _samples() -> Split:
    """The samples of the process's one setup."""
    setup, _ = _here
    tree = setup.method_tree(METHODS[REFERENCE])
    samples, _ = read_samples(setup.config(tree))
    if not isinstance(samples, Split):
        raise TrainingError(
            f'{setup.name}: protocol "live" keeps no test; an experiment takes next_item, rated or'
            " shown"
        )
    return samples


def _train(tree: Tree) -> None:
    setup, directory = _here
    place = CellStore(setup, directory).run(tree)
    quality.train_run(setup.config(tree), _samples(), place)


def _measure_cell(cell: Cell) -> Record:
    setup, directory = _here
    store = CellStore(setup, directory)
    began = time.monotonic()
    return store.save(cell, _result(cell, store), time.monotonic() - began)


def _result(cell: Cell, store: CellStore) -> dict[str, Any]:
    setup = store.setup
    if cell.kind in TIMINGS:
        return TIMINGS[cell.kind]({role: setup.config(tree) for role, tree in cell.trees.items()})
    samples = _samples()
    if cell.kind == QUALITY:
        return quality.measure_quality(setup.config(cell.tree), samples, store.run(cell.tree))
    places = {role: store.run(tree) for role, tree in cell.trees.items()}
    if cell.kind == DIFFERENCE:
        first, second = (
            [place for role, place in places.items() if role.startswith(name)]
            for name in ("first", "second")
        )
        return quality.measure_difference(first, second, samples)
    runs = {role: place / quality.RUN for role, place in places.items()}
    return OF_RUNS[cell.kind](runs, samples, cell.options)
