from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import TrainingError
from models.config import RunConfig, load_config, read_config
from models.data.divisions import ByTime, LastOfUser
from models.data.live import Live
from models.data.protocols import Rated
from models.networks.encode import EncodeConfig
from models.networks.twin import TWINConfig


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refusal(tree: dict[str, Any]) -> str:
    with pytest.raises(TrainingError) as caught:
        read_config(tree, "run.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run.toml: ")
    return message.removeprefix("run.toml: ")


def test_every_section_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.toml",
        """
        name = "shop"
        data = { reader = "columns", path = "x.csv", options = { separator = ";" } }
        protocol = { kind = "rated", threshold = 3.5 }
        split = { kind = "last", test = 5 }
        schema = { item = ["genre"], category = "genre", behavior = ["age"] }
        network = { d = 16, hidden = [8, 4] }
        long_term = { network = "twin", L = 200 }
        training = { epochs = 3, log = ["tensorboard"] }
        """,
    )
    config = load_config(path)
    assert config.protocol == Rated(threshold=3.5)
    assert config.split == LastOfUser(test=5)
    assert isinstance(config.long_term, TWINConfig)
    assert config.network.hidden == (8, 4)
    assert config.training.log == ("tensorboard",)
    assert config.data.options == {"separator": ";"}


def test_nothing_said_is_the_default() -> None:
    assert read_config({}) == RunConfig(long_term=EncodeConfig())


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"long_term": {"L": 50}}, RunConfig(long_term=EncodeConfig(L=50))),
        ({"protocol": {"negatives": 5}}, RunConfig(protocol=Live(negatives=5))),
        ({"split": {"test": 0.2}}, RunConfig(split=ByTime(test=0.2))),
        ({"split": {}}, RunConfig()),
    ],
)
def test_a_section_without_its_kind_is_of_the_default_s(
    tree: dict[str, Any], expected: RunConfig
) -> None:
    assert read_config(tree) == expected


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"traning": {}}, "unknown key traning; did you mean training?"),
        ({"training": {"epoch": 3}}, "unknown key training.epoch; did you mean epochs?"),
        (
            {"protocol": {"kind": "live", "negativs": 3}},
            "unknown key protocol.negativs; did you mean negatives?",
        ),
        (
            {"long_term": {"network": "encode", "betamode": "divide"}},
            "unknown key long_term.betamode; did you mean beta_mode?",
        ),
        (
            {"long_term": {"netwrk": "din"}},
            "unknown key long_term.netwrk; did you mean network?",
        ),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest(tree: dict[str, Any], message: str) -> None:
    assert refusal(tree).startswith(message)


def test_a_key_like_no_other_is_answered_with_all() -> None:
    assert refusal({"split": {"kind": "time", "zzz": 1}}) == (
        "unknown key split.zzz; choose one of: kind, test, validation"
    )


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"protocol": {"kind": "lve"}}, "protocol.kind = 'lve' is unknown; did you mean live?"),
        (
            {"long_term": {"network": "encod"}},
            "long_term.network = 'encod' is unknown; did you mean encode?",
        ),
        (
            {"training": {"schedule": "cosin"}},
            "training.schedule = 'cosin' is unknown; did you mean cosine?",
        ),
        (
            {"training": {"log": ["mlflow", "tensorbord"]}},
            "training.log[1] = 'tensorbord' is unknown; did you mean tensorboard?",
        ),
    ],
)
def test_a_kind_that_there_is_not_is_named(tree: dict[str, Any], message: str) -> None:
    assert refusal(tree) == message


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"training": {"epochs": "three"}}, "training.epochs = 'three': expected `int`"),
        ({"training": 3}, "training = 3: expected `object`"),
        ({"network": {"hidden": [1, 2, 3]}}, "network.hidden = [1, 2, 3]: expected `array`"),
        ({"training": {"batch": 0}}, "training.batch = 0: expected `int` >= 1"),
        ({"long_term": {"network": "encode", "K": 0}}, "long_term.K = 0: expected `int` >= 1"),
        ({"split": {"kind": "time", "test": 2}}, "split.test is 2.0; it is a share"),
    ],
)
def test_a_value_that_does_not_do_is_named(tree: dict[str, Any], message: str) -> None:
    assert refusal(tree).startswith(message)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"run\.toml cannot be read: No such file"):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize("text", ["epochs = ", "\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrainingError, match=r"run\.toml is not TOML") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "seed = 1\n[training]\nepochs = 2\nbatch = 7")
    config = load_config(path, {"training.epochs": 3, "network.d": 8, "seed": 4})
    assert (config.training.epochs, config.training.batch) == (3, 7)
    assert (config.network.d, config.seed) == (8, 4)


def test_a_flag_into_a_value_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "seed = 1")
    with pytest.raises(TrainingError, match=r"--set seed\.x: seed is a value, not a section"):
        load_config(path, {"seed.x": 3})


def test_another_method_has_settings_of_its_own_but_for_the_length(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[long_term]\nnetwork = 'encode'\nL = 50\nK = 4")
    assert load_config(path, method="twin").long_term == TWINConfig(L=50)


def test_what_is_set_is_set_of_the_other_method(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[long_term]\nK = 4")
    config = load_config(path, {"long_term.L": 70}, method="twin")
    assert config.long_term == TWINConfig(L=70)


def test_a_method_that_there_is_not_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "")
    with pytest.raises(TrainingError, match=r"long_term\.network = 'sdm' is unknown; did you mean"):
        load_config(path, method="sdm")
