"""A network of a configuration, asked for CTRs: how one is made, fed and measured."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from infra.arrays import F32
from models.config import RunConfig
from models.data.batches import Gatherer, prefetch
from models.data.requests import Requests
from models.data.schema import Inputs
from models.data.splits import AnySplit
from models.measures import quality
from models.network import Network

EVALUATED: Final = 4096
"""Candidates in a batch of evaluation, about."""


def make_network(config: RunConfig, inputs: Inputs) -> Network:
    """The network of a configuration, with the weights that its seed gives."""
    torch.manual_seed(config.seed)
    return Network(config.network, inputs, config.long_term.build(config.network.d, inputs))


def make_gatherer(config: RunConfig, samples: AnySplit, inputs: Inputs) -> Gatherer:
    """A gatherer of what the configuration's method sees: its L behaviors, and the recent ones."""
    length = max(config.long_term.L, config.network.M)
    stale = config.long_term.keeps_state
    return Gatherer(samples.interactions, samples.sequences, inputs, length, stale=stale)


def predict(
    network: Network, gatherer: Gatherer, requests: Requests, size: int | None = None
) -> F32:
    """CTRs f32[R, B] by the torch network.

    Args:
        size: requests a batch; None: a number that suits B.
    """
    if not len(requests.cut):
        return np.empty(requests.candidates.shape, np.float32)
    size = size or max(1, min(1024, EVALUATED // requests.candidates.shape[1]))
    device = network.embedding.weight.device
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return np.concatenate(
                [
                    network.ctrs(network(batch.to(device))[0]).cpu().numpy()
                    for batch in prefetch(gatherer.batches(requests, size))
                ]
            )
    finally:
        network.train(was_training)


def measure_network(
    network: Network, gatherer: Gatherer, samples: AnySplit, requests: Requests
) -> dict[str, float]:
    """Measures of the network's CTRs, by name, as `models.measures.quality.measure` has them."""
    ctrs = predict(network, gatherer, requests)
    return quality.measure(ctrs, requests, samples.users(requests)).named()
