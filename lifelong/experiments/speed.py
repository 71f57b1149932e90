"""How fast methods train and infer beside DIN-L (SDIM, Tables 2 and 3: "T&I Speed").

A step of training is the forward and the backward pass and the optimizer's; inference is the
forward pass alone, both stages of a method from the sequence on. Batches are gathered beforehand: a
trainer gathers them beside (`models.data.batches.prefetch`), whatever the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from lifelong.bench.train import training_step
from lifelong.experiments.tables import REFERENCE
from lifelong.experiments.timing import Times, time_in_turns
from lifelong.machine import machine
from models.config import RunConfig
from models.data.requests import Requests
from models.data.schema import Inputs
from models.data.splits import Split
from models.devices import one_thread
from models.prediction import make_gatherer, make_network


def measure_speed(
    methods: Mapping[str, RunConfig],
    samples: Split,
    *,
    batch: int = 256,
    steps: int = 2,
    rounds: int = 9,
) -> dict[str, Any]:
    """Samples a second of each method, on one core; a sample is a candidate with its user.

    Args:
        methods: by label; "DIN-L" is what the others are compared with.
        samples: whose training part is learned from.
        batch: requests a step.
        steps: of a round, each with a batch of its own.
        rounds: in which all alternate.

    Returns:
        "methods": by label "training" and "inference", samples a second, the median over rounds;
        "training_ratio" and "inference_ratio", how many times faster than DIN-L it is, the median
        of each round's (None without DIN-L). Beside it "L" (of each method), "batch", "rounds",
        "machine".
    """
    requests = samples.epoch(0).part(slice(0, steps * batch))
    with one_thread(), torch.random.fork_rng(devices=()):
        learners = {
            label: _Learner(config, samples, requests, batch) for label, config in methods.items()
        }
        systems = {(label, "training"): learner.train for label, learner in learners.items()}
        systems |= {(label, "inference"): learner.infer for label, learner in learners.items()}
        times = time_in_turns(systems, rounds)
    described: dict[str, dict[str, float | None]] = {}
    for (label, kind), taken in times.items():
        described.setdefault(label, {}).update(
            {
                kind: round(median(requests.labels.size / s for s in taken.processor), 1),
                f"{kind}_ratio": _faster(taken, times.get((REFERENCE, kind))),
            }
        )
    return {
        "methods": described,
        "L": {label: config.long_term.L for label, config in methods.items()},
        "batch": batch,
        "rounds": rounds,
        "machine": machine(),
    }


class _Learner:
    """One method on batches of its own, since methods see sequences of different lengths."""

    def __init__(self, config: RunConfig, samples: Split, requests: Requests, batch: int) -> None:
        inputs = Inputs.of(samples.interactions, config.schema)
        gatherer = make_gatherer(config, samples, inputs)
        self._batches = list(gatherer.batches(requests, batch))
        self._network = make_network(config, inputs)
        self._network.long.on_epoch(self._network.item_table().detach())
        self._step = training_step(self._network, config.training, config.seed)

    def train(self) -> None:
        """A step on every batch."""
        self._network.train()
        for batch in self._batches:
            self._step(batch)

    @torch.no_grad()
    def infer(self) -> None:
        """CTRs of every batch, as `models.prediction.predict` has them."""
        self._network.eval()
        for batch in self._batches:
            torch.sigmoid(self._network(batch)[0])


def _faster(taken: Times, reference: Times | None) -> float | None:
    return None if reference is None else round(reference.ratio(taken), 2)
