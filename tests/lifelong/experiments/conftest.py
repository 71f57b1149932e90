"""A setup small enough to be measured in seconds: forty users of the shipped purchases."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifelong.experiments.setups import Setup, find_setup

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


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def tiny(tiny_file: Path) -> Setup:
    return find_setup(str(tiny_file), None, "small")
