"""``lifelong train`` and ``lifelong export``: the shipped history into a bundle. Needs torch."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lifelong.shipped import HISTORY_SHARE, ITEMS, PURCHASES
from models.data import load_interactions
from models.export import export
from models.training import Progress as TrainProgress
from models.training import TrainConfig, train


def run_train(run: Path, *, epochs: int | None, seed: int | None) -> dict[str, Any]:
    """Train on the first 80 % of the shipped purchases, never on the live rest.

    Raises:
        TrainingError: the run cannot start or go on.
    """
    config = TrainConfig(name="encode-online-retail-2")
    if epochs is not None:
        config = replace(config, optimizer=replace(config.optimizer, epochs=epochs))
    if seed is not None:
        config = replace(config, seed=seed)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("prepare", total=None)

        def show(at: TrainProgress) -> None:
            title = f"{at.phase} epoch {at.epoch}/{at.epochs}, loss {at.loss:.4f}"
            bar.update(task, description=title, total=at.steps, completed=at.step)
            if at.validation is not None:
                quality = at.validation
                line = f"epoch {at.epoch}: AUC {quality.auc:.4f}, hit@10 {quality.hit10:.4f}"
                console.print(line, highlight=False)

        result = train(
            config,
            load_interactions(PURCHASES, ITEMS, HISTORY_SHARE),
            run,
            show,
            data={
                "name": "online-retail-2",
                "licence": "CC BY 4.0",
                "source": "https://doi.org/10.24432/C5CG6D",
                "share": HISTORY_SHARE,
            },
        )
    for name, value in result.metrics.items():
        console.print(f"{name}: {value:.4f}", highlight=False)
    return {**asdict(result), "path": str(result.path)}


def run_export(run: Path, bundle: Path) -> dict[str, Any]:
    """Export a run's network to a bundle; prints what was checked."""
    checks = export(run, bundle)
    Console(stderr=True).print(
        f"{bundle}: {checks.requests} requests agree with the torch network to"
        f" {checks.max_ctr_difference:.1e}, projections to {checks.max_projection_difference:.1e}",
        highlight=False,
    )
    return asdict(checks)
