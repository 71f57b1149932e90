"""What is small enough to be measured in seconds: a setup, and samples with networks of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifelong.experiments.setups import Setup, find_setup
from models.config import read_config
from models.data.divisions import LastOfUser
from models.data.protocols import NextItem
from models.data.splits import Split, split_requests
from models.training import train
from tests.models.generated import planted_interactions

TINY = """
name = "tiny"

[data]
reader = "shipped"

[protocol]
kind = "next_item"
negatives = 2
evaluation_negatives = 20

[split]
kind = "time"

[samples]
users = 40
min_history = 5
evaluated = 60

[network]
d = 8
M = 4
hidden = [8, 8]

[long_term]
network = "din"
L = 30

[training]
epochs = 2
batch = 512
threads = 1
"""

PLANTED = {"encode": {"K": 4, "m": 4}, "din-l": {}}


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny(tiny_file: Path) -> Setup:
    return find_setup(str(tiny_file), None, "small")


@pytest.fixture(scope="session")
def planted() -> Split:
    """Forty users of 72 behaviors, the last of them at test."""
    interactions = planted_interactions(users=40, items=40, baskets=18)
    protocol = NextItem(negatives=2, evaluation_negatives=9)
    return split_requests(interactions, protocol, LastOfUser(1, 3))


@pytest.fixture(scope="session")
def planted_runs(planted: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network with interests and one without, trained on them; by name of the method."""
    paths = {}
    for name, method in PLANTED.items():
        config = read_config(
            {
                "network": {"d": 8, "M": 4, "hidden": [8, 4]},
                "long_term": {"network": name, "L": 16, **method},
                "training": {"batch": 256, "learning_rate": 0.01, "threads": 1, "device": "cpu"},
            }
        )
        paths[name] = tmp_path_factory.mktemp("planted") / name
        train(config, planted, paths[name])
    return paths
