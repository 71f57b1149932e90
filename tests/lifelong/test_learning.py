from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.errors import LifelongError, TrainingError
from lifelong.learning import read_interactions, read_samples, run_export, run_train
from models.bundle import SIGNATURE, Bundle
from models.config import DataConfig, load_config, read_config
from models.data.live import LiveSplit
from models.data.splits import Split
from tests.conftest import require
from tests.models.generated import planted_interactions

ROOT = Path(__file__).parents[2]

CONFIG = """
name = "shop"

[data]
reader = "columns"
path = "{path}"

[data.options]
user_id = "who"
item_id = "what"
time = "when"
time_unit = "s"

[protocol]
kind = "next_item"
negatives = 3
evaluation_negatives = 10

[split]
kind = "last"
validation = 2
test = 2

[network]
d = 8
M = 4
hidden = [8, 4]

[long_term]
network = "encode"
L = 32
m = 3
K = 4

[training]
batch = 128
learning_rate = 0.01
threads = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration, and behaviors in a CSV of columns of their own names."""
    data = planted_interactions(users=20, items=40, baskets=8)
    with (tmp_path / "log.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["what", "when", "who"])
        for item, time, user in zip(data.items, data.times, data.users, strict=True):
            rows.writerow([data.item_ids[item], time, data.user_ids[user]])
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.format(path=tmp_path / "log.csv"))
    return path


def refusal(config: Path, overrides: dict[str, Any]) -> str:
    with pytest.raises(LifelongError) as caught:
        run_train(config, config.parent / "run", overrides, resume=False)
    message = str(caught.value)
    assert "\n" not in message
    assert not (config.parent / "run").exists()
    return message


def test_a_file_of_ones_own_becomes_a_bundle(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = config.parent / "run"
    told = run_train(config, out, {}, resume=False)
    assert {"auc", "hit10", "test_auc", "test_log_loss"} <= told["metrics"].keys()
    assert told["path"] == str(out)
    assert len(told["curve"]) == told["epochs"] == 1
    shown = capsys.readouterr()
    assert "epoch 1: auc " in shown.err
    assert not shown.out  # that is for the figures as JSON

    checks = run_export(out, config.parent / "bundle")
    assert checks["max_ctr_difference"] <= 1e-5
    assert "requests agree with the torch network" in capsys.readouterr().err
    bundle = Bundle.load(config.parent / "bundle")
    assert bundle.manifest.n_items == 40
    assert bundle.manifest.data["reader"] == "columns"
    assert bundle.manifest.metrics == pytest.approx(told["metrics"])

    key = config.parent / "key.pem"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    halved = run_export(out, config.parent / "bundle", half=True, key=key)
    assert halved["sequences"] == checks["sequences"] > 5
    assert halved["max_sequence_difference"] <= 1e-4
    stored = Bundle.load(config.parent / "bundle").manifest.stored
    assert stored["interests"].dtype == "float16"
    assert (config.parent / "bundle" / SIGNATURE).stat().st_size == 64


def test_what_is_not_stored_cannot_be_half(config: Path) -> None:
    out = config.parent / "run"
    run_train(config, out, {"long_term": {"network": "din"}}, resume=False)
    with pytest.raises(TrainingError, match="half is for interests that the services store"):
        run_export(out, config.parent / "bundle", half=True)
    assert not (config.parent / "bundle").exists()


def test_flags_override_the_file(config: Path) -> None:
    overrides = {"training.epochs": 2, "training.patience": 0, "long_term": {"network": "din"}}
    told = run_train(config, config.parent / "run", overrides, resume=False)
    assert len(told["curve"]) == 2


def test_a_method_is_chosen_on_the_command_line(config: Path) -> None:
    """The file has settings of ENCODE's own, which say nothing to another method."""
    run_train(config, config.parent / "run", {}, method="din", resume=False)
    kept = json.loads((config.parent / "run" / "run.json").read_text())["config"]["long_term"]
    assert kept == {"network": "din", "L": 32}


def test_a_section_without_its_kind_trains_the_default_s(config: Path) -> None:
    config.write_text(config.read_text().replace('network = "encode"\n', ""))
    run_train(config, config.parent / "run", {}, resume=False)
    kept = json.loads((config.parent / "run" / "run.json").read_text())["config"]["long_term"]
    assert (kept["network"], kept["L"], kept["K"]) == ("encode", 32, 4)


@pytest.mark.parametrize(
    ("key", "value"), [("data.path", "log.csv"), ("data.options", {"user_id": "who"})]
)
def test_what_the_shipped_data_do_not_heed_is_told(config: Path, key: str, value: Any) -> None:
    asked = {"data": {"reader": "shipped"}, key: value}
    assert f"{key} says nothing to the reader" in refusal(config, asked)


def test_a_share_of_what_was_shown_is_told_to_say_nothing(config: Path) -> None:
    asked = {"protocol": {"kind": "shown"}, "data": {"reader": "logs", "path": "x", "share": 0.5}}
    assert "data.share says nothing to the protocol" in refusal(config, asked)


def test_only_the_process_that_leads_speaks(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    run_train(config, config.parent / "run", {"long_term": {"network": "din"}}, resume=False)
    assert not capsys.readouterr().err.strip()


def test_tensorboard_gets_what_the_console_does(config: Path) -> None:
    require(importlib.util.find_spec("tensorboard"), "tensorboard")
    reading = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = importlib.import_module(reading).EventAccumulator
    overrides = {"training.log": ["tensorboard"], "long_term": {"network": "din"}}
    told = run_train(config, config.parent / "run", overrides, resume=False)
    events = accumulator(str(config.parent / "run-logs" / "tensorboard"))
    events.Reload()
    assert {"fit/loss", "fit/validation_auc"} <= set(events.Tags()["scalars"])
    (auc,) = events.Scalars("fit/validation_auc")
    assert auc.value == pytest.approx(told["metrics"]["auc"], abs=1e-6)
    (loss,) = {event.value for event in events.Scalars("fit/loss")}
    assert loss == pytest.approx(told["curve"][0]["loss"], rel=1e-5)


@pytest.mark.parametrize("package", ["tensorboard", pytest.param("mlflow", marks=pytest.mark.long)])
def test_a_tracker_that_is_not_installed_is_named(config: Path, package: str) -> None:
    log = config.parent / f"{package}.toml"
    log.write_text(config.read_text() + f'log = ["{package}"]\n')
    command = f"import sys; sys.modules['{package}'] = None; from lifelong.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "train", str(log), "--out", str(config.parent / "run")],
        cwd=config.parent,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f'lifelong: training.log names "{package}", which is not installed; pip install {package}\n'
    )


def test_an_unknown_reader_is_told_with_the_nearest(config: Path) -> None:
    assert "there is no reader 'colums'; did you mean columns?" in refusal(
        config, {"data.reader": "colums"}
    )


def test_an_unknown_option_of_a_reader_is_told_with_the_nearest(config: Path) -> None:
    assert "no option 'user'; did you mean users?" in refusal(config, {"data.options.user": "x"})


def test_a_missing_file_is_named(config: Path) -> None:
    path = str(config.parent / "nowhere.csv")
    assert path in refusal(config, {"data.path": path})


def test_a_missing_data_set_is_told_with_where_to_get_it(config: Path) -> None:
    message = refusal(
        config,
        {"data": {"reader": "movielens-1m", "path": str(config.parent)}},
    )
    assert "https://grouplens.org/datasets/movielens/1m/" in message
    assert "licence" in message
    assert str(config.parent) in message


def test_no_path_is_said(config: Path) -> None:
    assert "data.path is empty" in refusal(config, {"data.path": ""})


def test_a_column_that_there_is_not_is_named(config: Path) -> None:
    assert "'shopper'" in refusal(config, {"data.options.user_id": "shopper"})


def test_a_feature_that_the_data_lack_is_named(config: Path) -> None:
    assert "schema.item names 'genre'" in refusal(config, {"schema.item": ["genre"]})


def test_impressions_need_logs(config: Path) -> None:
    assert 'data.reader = "logs"' in refusal(config, {"protocol": {"kind": "shown"}})


def test_a_table_of_items_is_joined_by_its_path(config: Path) -> None:
    items = config.parent / "items.csv"
    items.write_text("what,name,genre\nitem-3,Three,A\nitem-4,Four,B|A\n")
    options = {"items": str(items), "title": "name", "item_attributes": ["genre"], "separator": "|"}
    data = load_config(
        config, {f"data.options.{key}": value for key, value in options.items()}
    ).data
    interactions = read_interactions(data)
    assert interactions.titles[interactions.item_ids.index("item-4")] == "Four"
    assert interactions.item_attributes["genre"].values == ["", "A", "B"]


def test_the_protocol_says_how_samples_are_made(config: Path) -> None:
    samples, about = read_samples(load_config(config))
    assert isinstance(samples, Split)
    assert about["reader"] == "columns"
    live = {"kind": "live", "validation": 0.5}
    config_live = read_config({"data": {"reader": "shipped", "share": 0.05}, "protocol": live})
    samples, about = read_samples(config_live)
    assert isinstance(samples, LiveSplit)
    assert (about["name"], about["licence"]) == ("online-retail-2", "CC BY 4.0")


@pytest.mark.parametrize(
    ("overrides", "section"),
    [({"samples.users": 5}, "samples"), ({"split": {"kind": "time", "test": 0.3}}, "split")],
)
def test_what_the_live_protocol_would_ignore_is_refused(
    config: Path, overrides: dict[str, Any], section: str
) -> None:
    live: dict[str, Any] = {"protocol": {"kind": "live"}, "split": {"kind": "time"}}
    assert f"[{section}] says nothing" in refusal(config, live | overrides)


def test_settings_of_events_are_checked(config: Path) -> None:
    options = {"settings": {"time_unit": "weeks"}}
    overrides = {"data.reader": "logs", "data.options": options}
    assert "data.options.settings.time_unit" in refusal(config, overrides)


def test_the_share_is_of_the_behaviors() -> None:
    whole = read_interactions(DataConfig(reader="shipped", share=0.02))
    half = read_interactions(DataConfig(reader="shipped", share=0.01))
    assert len(half) == pytest.approx(len(whole) / 2, abs=1)
