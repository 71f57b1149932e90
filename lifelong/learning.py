"""``lifelong train`` and ``lifelong export``: from behaviors to a bundle. Needs torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from extractor.systems import open_system
from extractor.systems.golden import check_sequences
from infra.errors import DataError
from infra.settings import EventSettings
from lifelong.shipped import ITEMS, PURCHASES
from models.allocator import keep_freed_memory
from models.bundle import Bundle, private_key, sign
from models.config import DataConfig, RunConfig, load_config
from models.data.interactions import Interactions
from models.data.live import Live, LiveSplit, split_live
from models.data.protocols import Shown
from models.data.schema import Inputs
from models.data.selection import Selection
from models.data.splits import Split, split_requests
from models.export import export
from models.measures.baselines import baseline_qualities, rate_auc
from models.readers import READERS, columns, logs, read
from models.tracking import MLflow, TensorBoard, Tracker, TrainingProgress
from models.training import resolved, train

SHIPPED = "shipped"
"""The reader of the purchases that come with the project."""

TABLES: Final = frozenset({"items", "users", "meta"})
"""Options of readers that name a file."""


def read_samples(config: RunConfig) -> tuple[Split | LiveSplit, dict[str, Any]]:
    """The samples of a configuration, and what to say of the data in a bundle.

    Raises:
        TrainingError: the data are missing or malformed, or give no samples.
    """
    data = config.data
    about: dict[str, Any] = {"reader": data.reader, "path": data.path, "share": data.share}
    if isinstance(config.protocol, Shown):
        return _read_shown(config, config.protocol), about
    interactions = read_interactions(data)
    if data.reader == SHIPPED:
        about = {
            "name": "online-retail-2",
            "licence": "CC BY 4.0",
            "source": "https://doi.org/10.24432/C5CG6D",
            "share": data.share,
        }
    elif (origin := READERS[data.reader].origin) is not None:
        about |= {"name": origin.name, "licence": origin.licence}
    protocol = config.protocol
    if isinstance(protocol, Live):
        for section, default in (("samples", Selection()), ("split", RunConfig().split)):
            if getattr(config, section) != default:
                raise DataError(
                    f'[{section}] says nothing to the protocol "live", which divides by itself; '
                    "leave the section out"
                )
        return split_live(interactions, protocol, config.seed), about
    return split_requests(interactions, protocol, config.split, config.samples), about


def read_interactions(data: DataConfig) -> Interactions:
    """The behaviors that a configuration names."""
    if data.reader == SHIPPED:
        for key, given in (("path", data.path), ("options", data.options)):
            if given:
                raise DataError(
                    f'data.{key} says nothing to the reader "{SHIPPED}", which reads what comes'
                    ' with Lifelong; leave it out, or name another reader, as in "columns"'
                )
        return columns.read(PURCHASES, items=ITEMS, title="description", share=data.share)
    if not data.path:
        raise DataError(f"data.path is empty; say where the reader {data.reader!r} finds its files")
    return read(data.reader, Path(data.path), **{"share": data.share, **_options(data)})


def _options(data: DataConfig) -> dict[str, Any]:
    """A reader's options as it takes them: TOML knows neither paths nor settings."""
    options = dict(data.options)
    for name in TABLES & options.keys():
        options[name] = Path(str(options[name]))
    if "settings" in options:
        try:
            options["settings"] = EventSettings.model_validate(options["settings"])
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, ("data.options.settings", *first["loc"])))
            raise DataError(f"{key}: {first['msg']}") from error
    return options


def _read_shown(config: RunConfig, protocol: Shown) -> Split:
    data = config.data
    if data.reader != "logs" or not data.path:
        raise DataError(
            'protocol.kind is "shown", which needs impressions: data.reader = "logs" and data.path'
            f" a directory with {logs.EVENTS} and {logs.IMPRESSIONS}"
        )
    if data.share != 1:
        raise DataError(
            'data.share says nothing to the protocol "shown", which reads all impressions and all'
            " events; leave it out"
        )
    directory, options = Path(data.path), _options(data)
    unknown = options.keys() - {"outcomes", "window_s", "settings", "time_unit"}
    if unknown:
        raise DataError(
            f"data.options has no {min(unknown)!r} for impressions; it may hold outcomes, window_s,"
            " settings and time_unit"
        )
    joined = logs.read_logs(directory / logs.EVENTS, directory / logs.IMPRESSIONS, **options)
    return split_requests(
        joined.interactions, protocol, config.split, config.samples, joined.impressions
    )


def run_train(
    config_path: Path,
    out: Path | None,
    overrides: Mapping[str, Any],
    *,
    method: str | None = None,
    resume: bool,
) -> dict[str, Any]:
    """Train as a configuration says, into ``out`` (by default runs/<its name>).

    Args:
        overrides, method: as of `models.config.load_config`.

    Raises:
        TrainingError: the run cannot start or go on.
    """
    keep_freed_memory()
    config = load_config(config_path, overrides, method)
    out = out or Path("runs") / config.name
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    console = Console(stderr=True, quiet=not leads)
    samples, about = read_samples(config)
    baselines = {}
    if isinstance(samples, LiveSplit):
        baselines = baseline_qualities(samples.interactions, samples.sequences, samples.validation)
    baselines |= _rate_baselines(config, samples)
    trackers = _trackers(config, out) if leads else ()
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*bars, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("prepare", total=None)

        def show(at: TrainingProgress) -> None:
            title = f"{at.phase} epoch {at.epoch}/{at.epochs}, loss {at.loss:.4f}"
            bar.update(task, description=title, total=at.steps, completed=at.step)
            if at.validation is not None:
                line = ", ".join(f"{name} {value:.4f}" for name, value in at.validation.items())
                console.print(f"epoch {at.epoch}: {line}", highlight=False, soft_wrap=True)

        try:
            result = train(
                config,
                samples,
                out,
                show,
                data=about,
                baselines=baselines,
                resume=resume,
                trackers=trackers,
            )
        finally:
            for tracker in trackers:
                tracker.close()
    for name, value in (result.metrics | baselines).items():
        console.print(f"{name}: {value:.4f}", highlight=False)
    console.print(f"{out}: epoch {result.epochs} is the best", highlight=False, soft_wrap=True)
    return {
        "path": str(result.path),
        "metrics": result.metrics | baselines,
        "epochs": result.epochs,
        "curve": msgspec.to_builtins(result.curve),
        "seconds": result.seconds,
    }


def _rate_baselines(config: RunConfig, samples: Split | LiveSplit) -> dict[str, float]:
    """What item and user tell by their rates alone, where the schema has them: AUCs by name."""
    schema = resolved(config, samples.interactions).schema
    rates = Inputs.of(samples.interactions, schema, samples.n_training).rates
    if rates is None:
        return {}
    length = config.long_term.L or config.network.M
    found = {"rates_auc": rate_auc(samples, samples.validation, rates, length)}
    if samples.test is not None:
        found["test_rates_auc"] = rate_auc(samples, samples.test, rates, length)
    return found


def _trackers(config: RunConfig, out: Path) -> tuple[Tracker, ...]:
    trackers: list[Tracker] = []
    if "tensorboard" in config.training.log:
        trackers.append(TensorBoard(out.with_name(f"{out.name}-logs")))
    if "mlflow" in config.training.log:
        trackers.append(MLflow(config.name, msgspec.to_builtins(config.training)))
    return tuple(trackers)


def run_export(
    run: Path,
    bundle: Path,
    *,
    half: bool = False,
    reference: Path | None = None,
    key: Path | None = None,
) -> dict[str, Any]:
    """Export a run's network to a bundle, signed with ``key`` if any; prints what was checked.

    Raises:
        SettingsError: the key cannot be used.
        TrainingError, BundleError: it cannot be exported, or what the services make of it differs
            from the network.
    """
    if key is not None:
        private_key(key)  # who cannot sign with it need not wait for the rest to be told
    checks = export(run, bundle, half=half, reference=reference)
    told = (
        f"{bundle}: {checks.requests} requests agree with the torch network to"
        f" {checks.max_ctr_difference:.1e}, items to {checks.max_item_difference:.1e}"
    )
    report = asdict(checks)
    if checks.sequences:
        loaded = Bundle.load(bundle)
        served = check_sequences(loaded, open_system(loaded))
        report["max_sequence_difference"] = served.max_difference
        told += f", {served.requests} sequences to {served.max_difference:.1e}"
    if key is not None:
        sign(bundle, key)
        told += "; signed"
    Console(stderr=True).print(told, highlight=False, soft_wrap=True)
    return report
