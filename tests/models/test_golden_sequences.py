from __future__ import annotations

import numpy as np
import pytest
import torch

from models.bundle import GoldenSequence, Tensor
from models.export import export_network
from models.golden_sequences import NOW_MS, answer_sequences
from models.networks.encode import Encode
from tests.bundles import tiny_config, tiny_network

IDS = ["", "east", "north", "between"]


def answered(angle: float) -> list[GoldenSequence]:
    """A user of two interests, and of an item at an angle between them, in degrees."""
    config = tiny_config(K=2, m=2)
    with torch.random.fork_rng(), torch.no_grad():
        network = tiny_network(3, config)
        assert isinstance(network.long, Encode)
        network.long.projection.zero_()
        network.long.projection[[0, 1], [0, 1]] = 1
        table = network.embedding.weight
        table.normal_()
        radians = torch.deg2rad(torch.tensor([0.0, 90.0, angle]))
        table[1:, :2] = torch.stack((radians.cos(), radians.sin()), 1)
        popularity = np.array([0, 1, 1, 1], np.float32)
        contents, _ = export_network(
            network, config, item_ids=IDS, titles=IDS, popularity=popularity
        )
    sequence = GoldenSequence(
        name="between",
        items=["east", "north", "between", "east", "north"],
        times=[NOW_MS - 1000] * 5,
        newer=0,
        count=5,
        candidates=["between"],
        now_ms=NOW_MS,
        ctr=Tensor.of(np.zeros(0, np.float32)),
    )
    return answer_sequences(network, contents.manifest, contents.catalog, range(4), [sequence])


@pytest.mark.parametrize("angle", [40.0, 44.9, 45.1])
def test_a_sequence_has_the_networks_ctrs(angle: float) -> None:
    (found,) = answered(angle)
    assert 0 < found.ctr.array()[0] < 1


def test_a_sequence_that_hangs_on_a_tie_is_left_out() -> None:
    """Another machine, which rounds otherwise, would put the item into the other cluster."""
    assert answered(45.0) == []
