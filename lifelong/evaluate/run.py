"""``lifelong evaluate``: what a trained run, or a bundle of one, is worth on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import track

from extractor.systems import SYSTEMS, open_system
from extractor.systems.golden import check_sequences
from infra.arrays import F32
from infra.behaviors import BEHAVIOR, item_key
from infra.errors import SettingsError, TrainingError
from infra.store import Behaviors
from lifelong.evaluate import report as evaluation_report
from lifelong.learning import read_samples
from models import bundle as bundles
from models import devices, prediction, runs
from models.config import RunConfig, read_config
from models.data.batches import Gatherer
from models.data.live import LiveSplit
from models.data.requests import Requests
from models.data.splits import Split
from models.measures import predictions as metrics
from models.measures import quality, relevance, unknown
from models.network import Network
from models.networks.din import DINL
from models.reference import serving

PARTS: Final = ("validation", "test")

SECTIONS: Final = ("data", "protocol", "split", "samples", "training")
"""Sections of the configuration that can still be set once a network is trained."""

RESAMPLED: Final = 200_000_000
"""Predictions that the bootstrap ranks in all, about: half a minute."""

RESAMPLINGS: Final = 1000
"""Most resamplings of the bootstrap; its interval's ends are known to a tenth of its width."""

Scorer = Callable[[Split | LiveSplit, Requests], F32]

Popularity = Callable[[Split | LiveSplit, Requests], F32]
"""Of samples and some of their requests, popularity f32[n + 1] of the items; 0: not known."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What is asked of an evaluation."""

    part: str | None = None
    """Part of the samples: "validation" or "test"; None: the test where they have one."""
    reference: Path | None = None
    """A run of DIN-L, for RI and the hit rate of the search."""
    baseline: Path | None = None
    """A run to be better than."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values of the configuration by dotted key: where the data are now, for example."""
    plots: Path | None = None
    """Where to draw; None: nowhere."""
    top: int = 100
    """Behaviors of the reference that the search should find."""


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: a network or a bundle's graphs."""

    path: Path
    kind: str
    config: RunConfig
    learned: Mapping[str, Any]
    """What it learned from (`Manifest.data`)."""
    score: Scorer
    popularity: Popularity
    sampling_rate: float
    """Share of the negatives that it learned from, for which its CTRs are corrected."""
    run: runs.Run | None = None
    golden: bundles.GoldenChecks | None = None


def run_evaluate(path: Path, options: EvaluateOptions, *, quiet: bool = False) -> dict[str, Any]:
    """Evaluate a run or a bundle; prints tables unless ``quiet``.

    Raises:
        LifelongError: there is nothing to evaluate at ``path``, or not on these samples.
    """
    if options.part not in {None, *PARTS}:
        raise SettingsError(f"--part {options.part}: take {' or '.join(PARTS)}")
    draw: Callable[[dict[str, Any], Path], list[str]] | None = None
    if options.plots is not None:
        from lifelong.evaluate import figures  # whoever lacks its package is told at once

        draw = figures.draw
    console = Console(stderr=True, quiet=quiet)
    report: dict[str, Any] = {"path": str(path)}
    subject = _open(path, options, report)
    if subject is not None:
        with console.status("reading the samples"):
            samples, _ = read_samples(subject.config)
        measured = _Measured.of(subject, samples, options, console)
        report = plain(report | _report(measured, options, console))
        if draw is not None and options.plots is not None:
            report["plots"] = draw(report, options.plots)
    if not quiet:
        evaluation_report.show(Console(), report)
    return report


def _open(path: Path, options: EvaluateOptions, report: dict[str, Any]) -> _Subject | None:
    """The run or bundle at ``path``; None for a bundle that only repeats its golden requests."""
    if (path / runs.RUN).exists():
        run = runs.load_run(path)
        report |= {"kind": "run", "name": run.config.name, "method": _method(run)}
        config = _overridden(msgspec.to_builtins(run.config), options.overrides, path)
        network = run.network.to(devices.pick_device(config))
        score, known = _by_network(path, run, network), _known_to_run(path, run)
        rate = run.network.sampling_rate
        return _Subject(path, "run", config, run.data, score, known, rate, run)
    if not (path / bundles.MANIFEST).exists():
        raise TrainingError(
            f"{path} holds neither a training run ({runs.RUN}) nor a bundle"
            f" ({bundles.MANIFEST}); make one with `lifelong train`"
        )
    manifest, golden = bundles.verify(path)
    report |= {"kind": "bundle", "name": manifest.name, "method": manifest.system}
    report["golden"] = asdict(golden)
    if manifest.system not in SYSTEMS or manifest.unserved:
        sees = next(iter(manifest.unserved), None)
        why = f"sees schema.{sees}" if sees else f"is of {manifest.system}"
        note = (
            f"the bundle {why}, which the services do not serve, so that only its golden requests"
            " were repeated; for the measures, evaluate the run that it was exported from"
        )
        report["notes"] = [note]
        return None
    if options.reference is not None:
        raise SettingsError(
            f"--reference needs the network's own weights of behaviors, which the bundle {path}"
            " does not tell; evaluate the run that it was exported from"
        )
    config = _overridden(manifest.training, options.overrides, path / bundles.MANIFEST)
    loaded = bundles.Bundle.load(path, verify=False)  # just done
    sequences = check_sequences(loaded, open_system(loaded))
    report["golden_sequences"] = asdict(sequences)
    score, known = _by_bundle(loaded), _known_to_bundle(loaded)
    return _Subject(
        path, "bundle", config, manifest.data, score, known, manifest.corrected_for, golden=golden
    )


def _overridden(tree: Mapping[str, Any], overrides: Mapping[str, Any], where: Path) -> RunConfig:
    """The configuration that something was trained with, as far as its samples go changed."""
    tree = {name: dict(part) if isinstance(part, dict) else part for name, part in tree.items()}
    # Kinds first: another kind of a section has other keys.
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".kind")):
        section, _, name = key.partition(".")
        if section not in SECTIONS or not name or "." in name:
            raise SettingsError(
                f"--set {key}: the network is trained; what can still be set are keys of"
                f" {', '.join(SECTIONS)}, as in data.path=DIR"
            )
        if name == "kind" and tree[section].get("kind") != value:
            tree[section] = {}
        tree[section][name] = value
    return read_config(tree, str(where))


def _by_network(path: Path, run: runs.Run, network: Network) -> Scorer:
    def score(samples: Split | LiveSplit, requests: Requests) -> F32:
        gatherer = _gatherer(run, samples)
        return prediction.predict(network, gatherer, _as_known(path, run, samples, requests))

    return score


def _known_to_run(path: Path, run: runs.Run) -> Popularity:
    def popularity(samples: Split | LiveSplit, requests: Requests) -> F32:
        until = _as_known(path, run, samples, requests).bundle.max(initial=0)
        rows = np.arange(len(samples.interactions.item_ids), dtype=np.int32)
        return samples.interactions.popularity(rows, int(until))

    return popularity


def _known_to_bundle(bundle: bundles.Bundle) -> Popularity:
    def popularity(samples: Split | LiveSplit, _requests: Requests) -> F32:
        keys = np.array([item_key(item) for item in samples.interactions.item_ids], np.uint64)
        found: F32 = bundle.popularity[bundle.rows(keys)]
        return found

    return popularity


def _gatherer(run: runs.Run, samples: Split | LiveSplit) -> Gatherer:
    return prediction.make_gatherer(run.config, samples, run.inputs)


def _by_bundle(bundle: bundles.Bundle) -> Scorer:
    def score(samples: Split | LiveSplit, requests: Requests) -> F32:
        keys = np.array([item_key(item) for item in samples.interactions.item_ids], np.uint64)
        offline = serving.sequence_requests(
            bundle, samples.sequences, requests, keys, _known(bundle, samples)
        )
        scored = serving.score_requests(bundle, offline)
        bar = track(
            scored,
            "scoring",
            total=len(requests.cut),
            console=Console(stderr=True),
            transient=True,
        )
        return np.stack(list(bar))

    return score


def _known(bundle: bundles.Bundle, samples: Split | LiveSplit) -> Behaviors:
    """BEHAVIOR[N]: the samples' sequences but for their items, as a store of which the bundle
    declared the actions would hold them.
    """
    interactions, order = samples.interactions, samples.sequences.position
    behaviors = np.zeros(len(order), BEHAVIOR)
    behaviors["time"] = samples.sequences.times * 1000
    if interactions.actions is not None:
        codes = {name: code for code, name in enumerate(bundle.manifest.actions, 1)}
        table = np.array([codes.get(name, 0) for name in interactions.action_names], np.uint8)
        behaviors["action"] = table[interactions.actions][order]
    if interactions.dwell_s is not None:
        behaviors["dwell"] = np.round(interactions.dwell_s[order] * 1000)
    return behaviors


def _as_known(
    path: Path, run: runs.Run, samples: Split | LiveSplit, requests: Requests
) -> Requests:
    """The requests as a run sees them: items that came after it are unknown to it.

    Raises:
        TrainingError: the items of the data are others than those that the run learned from.
    """
    known, items = run.vocabulary.item_ids, samples.interactions.item_ids
    later = isinstance(samples, LiveSplit) and len(items) > len(known)
    whose = bool(run.inputs.schema.user)
    same_users = not whose or run.inputs.n_users == len(samples.interactions.user_ids)
    if items[: len(known)] != known or (len(items) > len(known) and not later) or not same_users:
        raise TrainingError(
            f"{path} learned from other data: its {len(known) - 1} items are not the"
            f" {len(items) - 1} of these samples; name its data with --set data.path=..., or"
            " evaluate a bundle, which takes any items"
        )
    # Items are numbered by first behavior, so those of later data stand behind the run's own.
    until = int(run.data["behaviors"]) if isinstance(samples, LiveSplit) else samples.n_training
    return requests._replace(bundle=np.minimum(requests.bundle, until))


@dataclass(frozen=True)
class _Measured:
    """A subject's CTRs on one part of the samples."""

    subject: _Subject
    samples: Split | LiveSplit
    part: str
    requests: Requests
    ctrs: F32

    @classmethod
    def of(
        cls,
        subject: _Subject,
        samples: Split | LiveSplit,
        options: EvaluateOptions,
        console: Console,
    ) -> _Measured:
        part = options.part or ("validation" if samples.test is None else "test")
        requests = samples.validation if part == "validation" else samples.test
        if requests is None:
            raise SettingsError(
                '--part test: protocol "live" keeps no test, whatever comes later is one; take'
                " --part validation, of later data (--set data.share=1.0) if there are any"
            )
        if subject.kind == "bundle":
            return cls(subject, samples, part, requests, subject.score(samples, requests))
        with console.status(f"scoring {len(requests.cut):,} requests"):
            return cls(subject, samples, part, requests, subject.score(samples, requests))


def _report(measured: _Measured, options: EvaluateOptions, console: Console) -> dict[str, Any]:
    samples, requests, ctrs = measured.samples, measured.requests, measured.ctrs
    counted = requests.weights > 0
    slices = quality.measure_slices(ctrs, requests, samples)
    report: dict[str, Any] = {
        "part": measured.part,
        "requests": len(requests.cut),
        "candidates": int(counted.sum()),
        "positives": int(((requests.labels > 0) & counted).sum()),
        "measures": asdict(quality.measure(ctrs, requests, samples.users(requests))),
        "slices": {name: [asdict(part) for part in parts] for name, parts in slices.items()},
        "calibration": _calibration(measured),
        "unknown": _unknown(measured, console),
        "notes": list(_notes(measured, options)),
    }
    if options.reference is not None:
        with console.status("comparing with the reference"):
            compared = _relevance(measured, options.reference, options.top)
        report["relevance"] = {"reference": str(options.reference), **asdict(compared)}
        report["notes"] += _why_unanswered(measured, compared)
    if options.baseline is not None:
        with console.status("comparing with the baseline"):
            report["baseline"] = _difference(measured, options.baseline)
    return report


def _calibration(measured: _Measured) -> dict[str, Any]:
    """Predicted beside observed CTRs: by bins, altogether, and of items that are not known."""
    requests, ctrs = measured.requests, measured.ctrs
    bins = metrics.calibration(ctrs, requests.labels, requests.weights)
    report = {name: values.tolist() for name, values in bins._asdict().items()}
    return {
        **report,
        "expected_calibration_error": bins.error,
        "predicted_over_observed": metrics.calibration_ratio(
            ctrs, requests.labels, requests.weights
        ),
        "sampling_rate": measured.subject.sampling_rate,
    }


def _unknown(measured: _Measured, console: Console) -> dict[str, Any]:
    """What items that are not known earn, and where one is ranked among the most popular."""
    samples, requests, subject = measured.samples, measured.requests, measured.subject
    popularity = subject.popularity(samples, requests)
    chosen = (requests.weights > 0) & (popularity[requests.candidates] == 0)
    asked = unknown.unknown_requests(requests, samples.users(requests), popularity)
    with console.status("ranking an unknown item"):
        ranks = unknown.unknown_ranks(subject.score(samples, asked))
    earned = unknown.Earnings.of(measured.ctrs, requests.labels, chosen)
    return {**asdict(earned), "ranks": asdict(ranks)}


def _notes(measured: _Measured, options: EvaluateOptions) -> Iterator[str]:
    """What a reader of the figures must know."""
    samples, learned = measured.samples, measured.subject.learned
    if isinstance(samples, LiveSplit):
        times = samples.sequences.times[measured.requests.cut]
        share = float((times <= int(learned.get("until", 0))).mean())
        if share:
            yield (
                f"{share:.0%} of these requests are of the time that the model learned from"
                " (protocol.refit), which flatters it; later data do not: --set data.share=1.0"
            )
        return
    changed = [key for key in options.overrides if not key.startswith(("data.path", "training."))]
    if changed:
        yield (
            f"these are not the samples of training ({', '.join(changed)} set): the model may have"
            " learned from some"
        )


def _relevance(measured: _Measured, path: Path, top: int) -> relevance.RelevanceMeasures:
    run = measured.subject.run
    assert run is not None
    reference = runs.load_run(path)
    if not isinstance(reference.network.long, DINL):
        raise SettingsError(
            f"--reference {path} is a run of {_method(reference)}; RI compares with DIN-L: name a"
            ' run of long_term.network = "din-l"'
        )
    samples = measured.samples
    network = reference.network.to(run.network.embedding.weight.device)
    return relevance.compare(
        relevance.Watched(run.network, _gatherer(run, samples)),
        relevance.Watched(network, _gatherer(reference, samples)),
        _as_known(path, reference, samples, _as_known(path, run, samples, measured.requests)),
        top=top,
    )


def _why_unanswered(measured: _Measured, found: relevance.RelevanceMeasures) -> Iterator[str]:
    run = measured.subject.run
    assert run is not None
    if not relevance.weighs(run.network.long):
        yield f"{_method(run)} weighs no behaviors: it has no RI"
    if relevance.searches(run.network.long) and not found.long_pairs:
        yield f"no request sees more than {found.top} behaviors: no search can miss one (--top)"


def _difference(measured: _Measured, path: Path) -> dict[str, Any]:
    baseline = runs.load_run(path)
    samples, requests = measured.samples, measured.requests
    network = baseline.network.to(devices.pick_device(measured.subject.config))
    theirs = _by_network(path, baseline, network)(samples, requests)
    replicates = int(np.clip(RESAMPLED // theirs.size, 100, RESAMPLINGS))
    return {
        "path": str(path),
        "method": _method(baseline),
        "measures": asdict(quality.measure(theirs, requests, samples.users(requests))),
        **differences(measured.ctrs, theirs, requests, samples, replicates),
    }


def differences(
    first: F32,
    second: F32,
    requests: Requests,
    samples: Split | LiveSplit,
    replicates: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences ``first - second`` of AUC and GAUC, users resampled, by measure: the fields of a
    `models.measures.predictions.Difference`.

    Args:
        first: CTRs f32[R, B], or f32[S, R, B] of S seeds, whose mean is told.
        second: as many.
        requests: those that the CTRs are of.
        samples: what the requests are a part of.
        replicates: resamplings of users for AUC; for GAUC they are as good as free.
        seed: of the resampling.
    """
    users = samples.users(requests)
    resamplings: dict[Literal["auc", "gauc"], int] = {"auc": replicates, "gauc": RESAMPLINGS}
    return {
        name: asdict(
            metrics.paired_bootstrap(
                first,
                second,
                requests.labels,
                users,
                name,
                replicates=number,
                seed=seed,
                weights=requests.weights,
            )
        )
        for name, number in resamplings.items()
    }


def _method(run: runs.Run) -> str:
    return str(run.config.long_term.__struct_config__.tag)


def plain(value: Any) -> Any:
    """The value for JSON: None for what is not a number, or without an end."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
