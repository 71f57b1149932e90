"""How fast methods train and infer beside DIN-L (SDIM, Tables 2 and 3: "T&I Speed").

A step of training is the forward and the backward pass and the optimizer's; inference is the
forward pass alone, both stages of a method from the sequence on. Batches are gathered beforehand: a
trainer gathers them beside (`models.batches.prefetch`), whatever the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
import torch

from lifelong.bench.report import machine
from lifelong.bench.train import Samples as Drawn
from lifelong.experiments.timing import Times, one_thread, time_in_turns
from models.batches import Gatherer
from models.config import RunConfig
from models.data import Requests, Sequences
from models.interactions import Attribute, Interactions
from models.networks import AnyConfig
from models.protocols import Split
from models.schema import Inputs, Schema
from models.training import batch_loss, make_network

REFERENCE: Final = "DIN-L"
CATEGORIES: Final = 100
"""Of the items, where samples are drawn."""
USERS: Final = 200


def measure_speed(
    methods: Mapping[str, AnyConfig | RunConfig],
    samples: Split | None = None,
    *,
    length: int = 200,
    batch: int = 256,
    candidates: int = 1,
    steps: int = 2,
    rounds: int = 9,
    seed: int = 0,
) -> dict[str, Any]:
    """Samples a second of each method, on one core; a sample is a candidate with its user.

    Args:
        methods: by label; "DIN-L" is what the others are compared with.
        samples: what to learn from; its training part is drawn upon, and a `RunConfig` holds as it
            is. None: drawn ones, whose sequences are full and whose items have a category; of a
            configuration only method, network and training hold, and its L is ``length``.
        length: L, where samples are drawn.
        batch: requests a step.
        candidates: B, of a drawn request. All share what the method does to the sequence alone.
        steps: of a round, each with a batch of its own.
        rounds: in which all alternate.
        seed: of the weights.

    Returns:
        "methods": by label "training" and "inference", samples a second, the median over rounds;
        "training_ratio" and "inference_ratio", how many times faster than DIN-L it is, the median
        of each round's (None without DIN-L). Beside it "L" (of each method), "batch", "rounds",
        "machine".
    """
    runs = {label: _run(config, samples, length, seed) for label, config in methods.items()}
    with one_thread(), torch.random.fork_rng(devices=()):
        interactions, sequences, requests = (
            _known(samples, steps * batch)
            if samples is not None
            else _drawn(length, steps * batch, candidates)
        )
        learners = {
            label: _Learner(run, interactions, sequences, requests, batch)
            for label, run in runs.items()
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
        "L": {label: run.long_term.L for label, run in runs.items()},
        "batch": batch,
        "rounds": rounds,
        "machine": machine(),
    }


class _Learner:
    """One method on batches of its own, since methods see sequences of different lengths."""

    def __init__(
        self,
        config: RunConfig,
        interactions: Interactions,
        sequences: Sequences,
        requests: Requests,
        batch: int,
    ) -> None:
        inputs = Inputs.of(interactions, config.schema)
        seen = max(config.long_term.L, config.network.M)
        gatherer = Gatherer(interactions, sequences, inputs, seen)
        self._batches = list(gatherer.batches(requests, batch))
        self._network = make_network(config, inputs)
        self._network.long.on_epoch(self._network.item_table().detach())
        self._optimizer = torch.optim.Adam(
            self._network.parameters(), config.training.learning_rate
        )
        self._generator = torch.Generator().manual_seed(config.seed)
        self._weigh = config.training.auxiliary_weight

    def train(self) -> None:
        """A step on every batch."""
        self._network.train()
        for batch in self._batches:
            entropy, weight, auxiliary = batch_loss(self._network, batch, self._generator)
            loss = entropy / weight + self._weigh * auxiliary
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            loss.item()  # a trainer watches its loss

    @torch.no_grad()
    def infer(self) -> None:
        """CTRs of every batch, as `models.training.predict` has them."""
        self._network.eval()
        for batch in self._batches:
            torch.sigmoid(self._network(batch)[0])


def _run(config: AnyConfig | RunConfig, samples: Split | None, length: int, seed: int) -> RunConfig:
    run = config if isinstance(config, RunConfig) else RunConfig(long_term=config)
    run = msgspec.structs.replace(run, seed=seed)
    if samples is not None:
        return run
    # DIN has no long-term part to lengthen: its L is 0.
    method = msgspec.structs.replace(run.long_term, L=length if run.long_term.L else 0)
    return msgspec.structs.replace(run, schema=Schema(category="category"), long_term=method)


def _known(samples: Split, size: int) -> tuple[Interactions, Sequences, Requests]:
    return samples.interactions, samples.sequences, samples.epoch(0).part(slice(0, size))


def _drawn(length: int, size: int, B: int) -> tuple[Interactions, Sequences, Requests]:
    drawn = Drawn.draw(length, size, USERS)
    plain = drawn.interactions()
    rows = np.arange(len(plain.item_ids), dtype=np.int32)[:, None] % CATEGORIES
    category = Attribute(["", *map(str, range(1, CATEGORIES))], rows)
    interactions = replace(plain, item_attributes={"category": category})
    rng = np.random.default_rng(0)
    requests = drawn.requests()._replace(
        candidates=rng.integers(1, len(rows), (size, B), np.int32),
        labels=rng.integers(0, 2, (size, B)).astype(np.float32),
        weights=np.ones((size, B), np.float32),
    )
    return interactions, Sequences.of(interactions), requests


def _faster(taken: Times, reference: Times | None) -> float | None:
    return None if reference is None else round(reference.ratio(taken), 2)
