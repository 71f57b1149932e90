from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from infra.errors import BundleCorrupt, BundleIncompatible, SettingsError, TrainingError
from lifelong.evaluate.report import slice_label
from lifelong.evaluate.run import EvaluateOptions, run_evaluate
from lifelong.learning import read_samples
from models.bundle import MANIFEST, SCORER, Bundle, Manifest
from models.bundle.manifest import sealed
from models.config import RunConfig, read_config
from models.data.requests import Requests, Sequences
from models.export import export
from models.reference.serving import sequence_requests
from models.training import train
from tests.models.generated import planted_interactions

Make = Callable[..., Path]

RATED = {"kind": "rated"}
LIVE = {"kind": "live", "evaluated": 60, "refit": False, "validation": 0.3}


@pytest.fixture(scope="module")
def behaviors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events of users who like one half of the items."""
    data = planted_interactions(users=30, items=240, baskets=10)
    liked = (data.users % 2 == (data.items > 120)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "behaviors.parquet"
    columns = {
        "user_id": [data.user_ids[user] for user in data.users],
        "item_id": [data.item_ids[item] for item in data.items],
        "time": data.times,
        "value": 1 + 4 * liked,
    }
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def make(behaviors: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Trains a run of a method on a protocol, once; gives its directory."""
    made: dict[str, Path] = {}

    def make(method: str, protocol: dict[str, Any], **network: Any) -> Path:
        key = f"{method}-{protocol['kind']}{network or ''}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("runs") / key
            config = configuration(method, protocol, behaviors, network)
            samples, about = read_samples(config)
            train(config, samples, made[key], data=about)
        return made[key]

    return make


def configuration(
    method: str, protocol: dict[str, Any], behaviors: Path, network: dict[str, Any]
) -> RunConfig:
    split = {"split": {"kind": "last", "validation": 4, "test": 4}}
    return read_config(
        {
            "name": method,
            "data": {
                "reader": "columns",
                "path": str(behaviors),
                "options": {"time_unit": "s", "value": "value"},
            },
            "protocol": protocol,
            **({} if protocol["kind"] == "live" else split),
            "network": {"d": 8, "M": 4, "hidden": (8, 4)},
            "long_term": {"network": method, "L": 32, **network},
            "training": {"threads": 1, "batch": 64, "device": "cpu"},
        }
    )


SERVED: dict[str, dict[str, Any]] = {
    "encode": {"K": 4},
    "sdim": {"m": 6, "tau": 2},
    "twin": {"k": 5, "heads": 2},
}
"""Methods that the services serve, and their settings."""


@pytest.fixture(scope="module")
def bundles(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of runs on later data, by method."""
    directory = tmp_path_factory.mktemp("bundles")
    for method, settings in SERVED.items():
        export(make(method, LIVE, **settings), directory / method)
    return {method: directory / method for method in SERVED}


@pytest.fixture(scope="module")
def bundle(bundles: dict[str, Path]) -> Path:
    return bundles["encode"]


def evaluate(path: Path, **options: Any) -> dict[str, Any]:
    return run_evaluate(path, EvaluateOptions(**options), quiet=True)


def test_a_run_gives_what_training_gave(make: Make) -> None:
    run = make("encode", RATED, K=4)
    trained = json.loads((run / "run.json").read_text())["metrics"]
    report = evaluate(run)

    assert report["part"] == "test"
    assert report["requests"] == report["candidates"] == 120
    for name in ("auc", "gauc", "log_loss", "calibration_error"):
        assert report["measures"][name] == pytest.approx(trained[f"test_{name}"], abs=1e-6)


def test_the_part_can_be_chosen(make: Make) -> None:
    run = make("encode", RATED, K=4)
    trained = json.loads((run / "run.json").read_text())["metrics"]

    assert evaluate(run, part="validation")["measures"]["auc"] == pytest.approx(trained["auc"])


def test_slices_hold_every_candidate(make: Make) -> None:
    report = evaluate(make("encode", LIVE, K=4))

    for parts in report["slices"].values():
        assert sum(part["rows"] for part in parts) == report["candidates"]
    assert len(report["slices"]["staleness"]) > 1


@pytest.mark.parametrize("method", SERVED)
def test_a_bundle_scores_like_its_run(make: Make, bundles: dict[str, Path], method: str) -> None:
    by_run, by_bundle = evaluate(make(method, LIVE, **SERVED[method])), evaluate(bundles[method])

    assert by_bundle["kind"] == "bundle"
    assert by_bundle["golden"]["max_difference"] < 1e-5
    assert by_bundle["golden_sequences"]["requests"] > 5
    assert by_bundle["golden_sequences"]["max_difference"] < 1e-5
    assert by_bundle["requests"] == by_run["requests"]
    for name, value in by_run["measures"].items():
        # Clusterings that tie may fall out otherwise.
        assert by_bundle["measures"][name] == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("method", SERVED)
def test_run_and_bundle_rank_an_unknown_item_alike(
    make: Make, bundles: dict[str, Path], method: str
) -> None:
    by_run, by_bundle = (
        evaluate(path)["unknown"]["ranks"]
        for path in (make(method, LIVE, **SERVED[method]), bundles[method])
    )
    assert (by_run["users"], by_run["among"]) == (by_bundle["users"], by_bundle["among"])
    assert by_run["among"] == 100
    assert sum(by_run["counts"]) == by_run["users"] > 20
    assert by_run["median"] == pytest.approx(by_bundle["median"], abs=10)


@pytest.mark.parametrize("method", SERVED)
def test_calibration_is_of_what_is_ranked(bundles: dict[str, Path], method: str) -> None:
    report = evaluate(bundles[method])
    calibration = report["calibration"]
    assert calibration["sampling_rate"] == Bundle.load(bundles[method]).manifest.sampling_rate
    assert 0 < calibration["sampling_rate"] < 0.5
    assert calibration["expected_calibration_error"] == report["measures"]["calibration_error"]
    assert calibration["predicted_over_observed"] == report["measures"]["calibration_ratio"]


def test_labels_that_were_not_drawn_need_no_correction(make: Make) -> None:
    assert evaluate(make("encode", RATED, K=4))["calibration"]["sampling_rate"] == 1


def test_a_bundle_of_an_earlier_version_says_that_it_corrects_nothing(
    bundle: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    for file in bundle.iterdir():
        (earlier / file.name).write_bytes(file.read_bytes())
    manifest = msgspec.json.decode((earlier / MANIFEST).read_bytes(), type=Manifest)
    rate = manifest.corrected_for
    unset = sealed(msgspec.structs.replace(manifest, sampling_rate=msgspec.UNSET))
    (earlier / MANIFEST).write_bytes(msgspec.json.encode(unset))
    assert b"sampling_rate" not in (earlier / MANIFEST).read_bytes()
    loaded = Bundle.load(earlier)
    assert (loaded.manifest.corrected_for, rate < 1) == (1, True)


@pytest.mark.parametrize(
    "method", ["encode", *(pytest.param(name, marks=pytest.mark.long) for name in ("sdim", "twin"))]
)
def test_a_bundle_that_sees_features_of_behaviors_and_rates_scores_like_its_run(
    behaviors: Path, tmp_path: Path, method: str
) -> None:
    table = parquet.read_table(behaviors)
    liked = np.where(table["value"].to_numpy() > 3, "liked", "passed")
    stayed_s = np.random.default_rng(1).integers(0, 5_000, len(liked)) / 8
    told = table.append_column("action", pa.array(liked)).append_column("dwell", pa.array(stayed_s))
    parquet.write_table(told, tmp_path / "told.parquet")
    config = configuration(method, RATED, tmp_path / "told.parquet", SERVED[method])
    config.data.options.update(action="action", dwell_s="dwell")
    seen = ("action", "dwell", "age") if method == "twin" else ("action", "dwell")
    schema = msgspec.structs.replace(config.schema, behavior=seen)
    config = msgspec.structs.replace(config, schema=schema)
    samples, about = read_samples(config)
    train(config, samples, tmp_path / "run", data=about)
    export(tmp_path / "run", tmp_path / "bundle")
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert tuple(manifest.combinations.heights) == seen
    assert manifest.rates is not None
    assert manifest.rates.positive == ("liked",)

    by_run, by_bundle = evaluate(tmp_path / "run"), evaluate(tmp_path / "bundle")

    assert by_bundle["golden_sequences"]["max_difference"] < 1e-5
    for name, value in by_run["measures"].items():
        # Clusterings that tie may fall out otherwise.
        assert by_bundle["measures"][name] == pytest.approx(value, abs=0.01)


def test_the_report_is_json(make: Make) -> None:
    """A number that is none, or has no end, is null."""
    report = evaluate(make("encode", RATED, K=4), reference=make("din-l", RATED))

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["measures"]["hit10"] is None
    assert report["slices"]["history"][-1]["upper"] is None


def test_a_reference_gives_ri(make: Make) -> None:
    found = evaluate(make("encode", RATED, K=4), reference=make("din-l", RATED))["relevance"]

    assert found["least"] <= found["indicator"]
    assert found["hit_rate"] is None


def test_a_search_is_held_against_the_reference(make: Make) -> None:
    report = evaluate(make("eta", RATED, k=8), reference=make("din-l", RATED), top=8)

    assert 0 < report["relevance"]["hit_rate"] <= 1
    assert report["notes"] == []


def test_it_says_why_there_is_no_hit_rate(make: Make) -> None:
    report = evaluate(make("eta", RATED, k=8), reference=make("din-l", RATED))

    assert report["relevance"]["hit_rate"] is None
    assert "no request sees more than 100 behaviors" in report["notes"][0]


def test_a_baseline_gives_a_difference(make: Make) -> None:
    run, baseline = make("encode", RATED, K=4), make("din-l", RATED)
    found = evaluate(run, baseline=baseline)["baseline"]
    expected = evaluate(run)["measures"]["auc"] - evaluate(baseline)["measures"]["auc"]

    assert found["auc"]["observed"] == pytest.approx(expected, abs=1e-6)
    assert found["auc"]["low"] <= found["auc"]["high"]


def test_a_run_is_no_better_than_itself(make: Make) -> None:
    run = make("encode", RATED, K=4)

    assert evaluate(run, baseline=run)["baseline"]["gauc"]["low"] == 0


def test_figures_are_drawn(make: Make, tmp_path: Path) -> None:
    report = evaluate(make("encode", LIVE, K=4), plots=tmp_path / "plots")

    names = {"reliability.png", "reliability.svg", "auc-by-slice.png", "auc-by-slice.svg"}
    assert {Path(path).name for path in report["plots"]} == names
    assert all(Path(path).stat().st_size > 5000 for path in report["plots"])


def test_data_that_moved_are_named(make: Make, behaviors: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "moved.parquet"
    elsewhere.write_bytes(behaviors.read_bytes())
    run = make("encode", RATED, K=4)

    assert (
        evaluate(run, overrides={"data.path": str(elsewhere)})["measures"]
        == evaluate(run)["measures"]
    )


def test_samples_of_another_kind_are_told(make: Make) -> None:
    report = evaluate(make("encode", RATED, K=4), overrides={"split.test": 3})

    assert "split.test set" in report["notes"][0]


def test_a_bundle_can_be_asked_by_another_protocol(bundle: Path) -> None:
    overrides = {"protocol.evaluation_negatives": 5, "protocol.kind": "next_item"}
    report = evaluate(bundle, overrides=overrides)

    assert report["candidates"] == 6 * report["requests"]


def test_a_bundle_scores_an_impression_at_its_own_time(bundle: Path) -> None:
    loaded = Bundle.load(bundle, verify=False)
    interactions = planted_interactions(users=4, items=8, baskets=4)
    sequences = Sequences.of(interactions)
    cut = np.array([5, 9])
    candidates = np.ones((2, 1), np.int32)
    ones = np.ones((2, 1), np.float32)
    keys = np.arange(len(interactions.item_ids), dtype=np.uint64)
    shown = sequences.times[cut] + 77
    requests = Requests(cut, cut, cut, candidates, ones, ones, shown)

    now = [each.now_ms for each in sequence_requests(loaded, sequences, requests, keys)]

    assert now == (shown * 1000).tolist()


def test_another_method_s_bundle_repeats_its_golden_requests(make: Make, tmp_path: Path) -> None:
    export(make("avg-pooling", RATED), tmp_path / "bundle")
    report = evaluate(tmp_path / "bundle")

    assert report["golden"]["max_difference"] < 1e-5
    assert "measures" not in report
    assert "evaluate the run" in report["notes"][0]


def test_an_altered_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    altered.mkdir()
    for file in bundle.iterdir():
        (altered / file.name).write_bytes(file.read_bytes())
    (altered / SCORER).write_bytes(b"no graph")

    with pytest.raises(BundleCorrupt, match=f"{SCORER} has 8 bytes instead of"):
        evaluate(altered)


def test_a_bundle_of_another_format_is_refused(bundle: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    for file in bundle.iterdir():
        (newer / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((newer / MANIFEST).read_text())
    (newer / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))

    with pytest.raises(BundleIncompatible, match="has format 99"):
        evaluate(newer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "training"}, "--part training: take validation or test"),
        ({"part": "test"}, 'protocol "live" keeps no test'),
        ({"overrides": {"network.d": 3}}, "network.d: the network is trained"),
        ({"overrides": {"data.path": "nowhere.parquet"}}, "nowhere.parquet"),
        ({"overrides": {"data.pth": "x"}}, "did you mean path"),
    ],
)
def test_bad_options_end_in_one_line(make: Make, options: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingsError, TrainingError), match=words) as raised:
        evaluate(make("encode", LIVE, K=4), **options)
    assert "\n" not in str(raised.value)


def test_a_reference_must_be_din_l(make: Make) -> None:
    run = make("encode", RATED, K=4)

    with pytest.raises(SettingsError, match="is a run of encode; RI compares with DIN-L"):
        evaluate(run, reference=run)


def test_a_bundle_has_no_weights_to_compare(make: Make, bundle: Path) -> None:
    with pytest.raises(SettingsError, match="evaluate the run"):
        evaluate(bundle, reference=make("din-l", RATED))


def test_a_run_of_other_items_is_refused(make: Make, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    rows = [f"u{i % 9},i{i % 7},{1_600_000_000 + i},{1 + i % 5}" for i in range(400)]
    other.write_text("\n".join(["user_id,item_id,time,value", *rows]))

    with pytest.raises(TrainingError, match="learned from other data"):
        evaluate(make("encode", RATED, K=4), overrides={"data.path": str(other)})


def test_nothing_to_evaluate_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="neither a training run"):
        evaluate(tmp_path)


def test_a_missing_package_names_the_extra(make: Make, tmp_path: Path) -> None:
    """Before anything is read: the wait would be for nothing."""
    program = (
        "import sys; sys.modules['matplotlib'] = None; from lifelong.cli import main;"
        f"sys.argv = ['lifelong', 'evaluate', {str(make('din-l', RATED))!r}, '--plots', 'plots'];"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "matplotlib" in line
    assert "lifelong[train]" in line


def test_tables_are_for_people(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run_evaluate(
        make("encode", LIVE, K=4),
        EvaluateOptions(baseline=make("encode", LIVE, K=4)),
    )
    shown = capsys.readouterr().out

    for words in ("encode (encode, run) on validation", "GAUC", "By behaviors since the last"):
        assert words in shown


@pytest.mark.parametrize(
    ("name", "lower", "upper", "label"),
    [
        ("history", 3.0, 8.0, "3-7"),
        ("history", 3.0, 4.0, "3"),
        ("staleness", 24.0, None, "24+"),
        ("popularity", 12.4, 1234.5, "12.4-1,234"),
    ],
)
def test_slices_are_named_by_their_bounds(
    name: str, lower: float, upper: float | None, label: str
) -> None:
    assert slice_label(name, {"lower": lower, "upper": upper}) == label
