from __future__ import annotations

import numpy as np
import pytest

from models.config import RunConfig
from models.data.batches import Gatherer
from models.data.divisions import LastOfUser
from models.data.protocols import NextItem
from models.data.schema import Inputs
from models.data.splits import Split, split_requests
from models.measures.quality import measure
from models.network import Network, NetworkConfig
from models.networks.din import DINLConfig
from models.prediction import make_gatherer, make_network, measure_network, predict
from tests.models.generated import planted_interactions

CONFIG = RunConfig(network=NetworkConfig(d=8, M=4, hidden=(8, 4)), long_term=DINLConfig(L=16))


@pytest.fixture(scope="module")
def split() -> Split:
    return split_requests(planted_interactions(users=10), NextItem(1, 15), LastOfUser(2, 2))


@pytest.fixture(scope="module")
def made(split: Split) -> tuple[Network, Gatherer]:
    inputs = Inputs.of(split.interactions, CONFIG.schema)
    return make_network(CONFIG, inputs), make_gatherer(CONFIG, split, inputs)


def test_the_size_of_a_batch_does_not_matter(split: Split, made: tuple[Network, Gatherer]) -> None:
    whole = predict(*made, split.test)
    assert whole.shape == split.test.candidates.shape
    np.testing.assert_allclose(predict(*made, split.test, size=3), whole, atol=1e-6)


def test_no_request_gives_no_ctr(split: Split, made: tuple[Network, Gatherer]) -> None:
    none = split.test.part(np.empty(0, np.int64))
    assert predict(*made, none).shape == (0, 16)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_left_in_its_mode(
    split: Split, made: tuple[Network, Gatherer], training: bool
) -> None:
    made[0].train(training)
    predict(*made, split.test)
    assert made[0].training is training


def test_a_network_is_measured_by_its_ctrs(split: Split, made: tuple[Network, Gatherer]) -> None:
    measured = measure_network(*made, split, split.test)
    assert (
        measured == measure(predict(*made, split.test), split.test, split.users(split.test)).named()
    )
