"""Services simulated with a trained network, to measure what stale interests cost.

A service stores a user's interests and scores later requests with them, so by then the user has
behaviors that the interests do not cover. `SimulatedService` scores requests of a data set as if n
behaviors had come since, in each of the ways in which a service can treat them.

Letters in shapes: R requests, B candidates, L behaviors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from extractor.state import InterestState
from extractor.systems.encode import interests_of
from infra.arrays import F32, I64
from models import prediction, runs
from models.data.batches import Batch, Gatherer
from models.data.requests import Requests
from models.data.splits import Split
from models.modules.long_term import State
from models.network import Network


@dataclass(frozen=True)
class SimulatedService:
    """A trained network that scores requests as a service with stale interests would."""

    network: Network
    gatherer: Gatherer
    """Looks up the behaviors and features of requests."""

    @classmethod
    def of(cls, path: Path, samples: Split) -> SimulatedService:
        """The service of a finished run's network, over the samples of its setup."""
        run = runs.load_run(path)
        return cls(run.network, prediction.make_gatherer(run.config, samples, run.inputs))

    def times(self, requests: Requests) -> I64:
        """When each request is made: i64[R], seconds since epoch."""
        if requests.times is not None:
            return requests.times
        return self.gatherer.sequences.times[requests.cut]

    def fresh(self, requests: Requests, more: int = 0) -> F32:
        """CTRs f32[R, B] with fresh interests, of the last L + ``more`` behaviors."""
        gatherer = replace(self.gatherer, L=self.gatherer.L + more)
        return prediction.predict(self.network, gatherer, requests._replace(as_of=requests.cut))

    def attended(self, requests: Requests, n: int) -> F32:
        """CTRs f32[R, B] with interests n behaviors old, beside which those n stand one by one."""
        stale = requests._replace(as_of=requests.cut - n)
        return prediction.predict(self.network, self.gatherer, stale)

    def unseen(self, requests: Requests, n: int) -> F32:
        """CTRs f32[R, B] as if the last n behaviors had not been, in interests and all else."""
        return prediction.predict(self.network, self.gatherer, self._before(requests, n))

    def recent(self, requests: Requests, n: int) -> F32:
        """CTRs f32[R, B] with interests n behaviors old, and with those n in all else."""
        fresh = requests._replace(as_of=requests.cut)
        stale = self._before(requests, n)
        network = self.network
        scored = []
        with torch.no_grad():
            table = network.item_table()
            for rows in _parts(requests):
                then = self.gatherer(stale.part(rows))
                state = network.long.summarize(network.sequence(then, table))
                scored.append(_score(network, self.gatherer(fresh.part(rows)), state, table))
        return np.concatenate(scored)

    def stored(
        self, requests: Requests, states: Sequence[Sequence[InterestState]], newer: int
    ) -> list[F32]:
        """CTRs f32[R, B] of each series of states, with newer behaviors beside their interests.

        Args:
            requests: ``as_of`` is where what the states cover ends.
            states: series of R interest states, as an extractor stored them.
            newer: the most behaviors that any request has beyond its state.
        """
        network = self.network
        scored: list[list[F32]] = [[] for _ in states]
        with torch.no_grad():
            table = network.item_table()
            for rows in _parts(requests):
                batch = self.gatherer(requests.part(rows))
                newest = network.sequence(batch, table).latest(newer)
                assert newest.newer is not None
                alone = newest.newer & newest.mask
                for series, part in zip(states, scored, strict=True):
                    interests, sizes = _padded(series[rows])
                    state: State = {
                        "interests": torch.cat([interests, newest.embeddings], 1),
                        "sizes": torch.cat([sizes, alone.to(table.dtype)], 1),
                    }
                    part.append(_score(network, batch, state, table))
        return [np.concatenate(part) for part in scored]

    def _before(self, requests: Requests, n: int) -> Requests:
        """The same users asked for the same candidates at the same time, n behaviors short."""
        cut = requests.cut - n
        return requests._replace(cut=cut, as_of=cut, times=self.times(requests))


def _score(network: Network, batch: Batch, state: State, table: Tensor) -> F32:
    """CTRs f32[R, B] with the interests of a state and all other inputs of a batch."""
    recent = network.sequence(batch, table).latest(network.config.M)
    logits = network.logits(
        state,
        recent.embeddings,
        recent.mask.to(table.dtype),
        network.user(batch),
        network.target(batch, table),
        batch.cross,
    )
    ctrs: F32 = network.ctrs(logits).numpy()
    return ctrs


def _padded(states: Sequence[InterestState]) -> tuple[Tensor, Tensor]:
    """Interests f32[R, K', d] and sizes f32[R, K'] of states, as many as the fullest has."""
    stored = [interests_of(state) for state in states]
    most = max(len(one.sizes) for one in stored)
    interests = np.zeros((len(stored), most, stored[0].interests.shape[1]), np.float32)
    sizes = np.zeros((len(stored), most), np.float32)
    for at, one in enumerate(stored):
        interests[at, : len(one.sizes)] = one.interests
        sizes[at, : len(one.sizes)] = one.sizes
    return torch.from_numpy(interests), torch.from_numpy(sizes)


def _parts(requests: Requests) -> Iterator[slice]:
    """The rows of requests in parts of about ``prediction.EVALUATED`` candidates."""
    size = max(1, prediction.EVALUATED // requests.candidates.shape[1])
    for begin in range(0, len(requests.cut), size):
        yield slice(begin, begin + size)
