from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.arrays import F32
from lifelong.experiments.services import SimulatedService
from lifelong.experiments.streams import Items, Stream, behaviors_of
from models.data.requests import Requests
from models.data.splits import Split
from models.prediction import predict

METHODS = ("encode", "din-l")
"""Of `planted_runs`."""


def last_of_users(samples: Split) -> Requests:
    """One request a user, so that changing what is newer changes no other's past."""
    users = samples.users(samples.test)
    return samples.test.part(np.flatnonzero(np.append(users[1:] != users[:-1], True)))


def with_items(samples: Split, places: np.ndarray, items: np.ndarray) -> Split:
    """The same with other items (and times) at some places of the sequences."""
    sequences = samples.sequences
    changed, times = sequences.items.copy(), sequences.times.copy()
    changed[places] = items
    times[places] -= 100
    return replace(samples, sequences=replace(sequences, items=changed, times=times))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["fresh", "attended", "recent", "unseen"])
def test_at_no_staleness_every_variant_is_the_network_itself(
    planted: Split, planted_runs: dict[str, Path], method: str, variant: str
) -> None:
    service = SimulatedService.of(planted_runs[method], planted)
    expected = predict(service.network, service.gatherer, planted.test)
    ctrs: F32 = getattr(service, variant)(planted.test, 0)
    np.testing.assert_allclose(ctrs, expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_unseen_changes_nothing(
    planted: Split, planted_runs: dict[str, Path], method: str
) -> None:
    n, requests = 6, last_of_users(planted)
    newer = requests.cut[:, None] - 1 - np.arange(n)
    other = with_items(planted, newer, planted.sequences.items[newer - 30])
    before, after = (SimulatedService.of(planted_runs[method], each) for each in (planted, other))
    np.testing.assert_array_equal(before.unseen(requests, n), after.unseen(requests, n))
    for variant in ("attended", "recent", "longer"):
        if variant == "longer":
            changed = before.fresh(requests, n), after.fresh(requests, n)
        else:
            changed = tuple(getattr(each, variant)(requests, n) for each in (before, after))
        assert np.abs(changed[0] - changed[1]).max() > 1e-3


def test_what_is_unseen_is_missed_at_the_time_of_the_request(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    """The same users, and as long since the last behavior that is seen as it really is."""
    service = SimulatedService.of(planted_runs["encode"], planted)
    L = service.gatherer.L
    stale = service._before(planted.test, 5)
    np.testing.assert_array_equal(planted.users(stale), planted.users(planted.test))
    np.testing.assert_array_equal(stale.times, planted.sequences.times[planted.test.cut])
    batch = service.gatherer(stale)
    assert not batch.newer.any()
    known = service.gatherer(planted.test)
    np.testing.assert_array_equal(batch.rows[:, -(L - 5) :], known.rows[:, : L - 5])


def test_stale_interests_do_not_see_what_the_recent_behaviors_do(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    """Behaviors newer than the interests and older than the M recent ones count as candidates
    bought before, and for nothing else.
    """
    service = SimulatedService.of(planted_runs["encode"], planted)
    n, M, requests = 8, service.network.config.M, last_of_users(planted)
    between = requests.cut[:, None] - n + np.arange(n - M)
    items = planted.sequences.items[between]
    shown = (items[:, :, None] == requests.candidates[:, None]).any((1, 2))
    requests, between = requests.part(np.flatnonzero(~shown)), between[~shown]
    assert len(requests.cut) > 3
    others = np.array(
        [np.setdiff1d(np.arange(1, 41), row)[: n - M] for row in requests.candidates], np.int32
    )
    changed = with_items(planted, between, others)
    other = SimulatedService.of(planted_runs["encode"], changed)
    np.testing.assert_array_equal(service.recent(requests, n), other.recent(requests, n))
    assert (service.attended(requests, n) != other.attended(requests, n)).any()


def test_without_interests_attending_is_seeing_more(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    service = SimulatedService.of(planted_runs["din-l"], planted)
    requests = planted.test
    np.testing.assert_allclose(service.attended(requests, 9), service.fresh(requests, 9), atol=1e-6)


def test_stored_interests_give_what_the_network_gives(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    """The extractor's cold clustering and the network's, whatever has come since."""
    step, requests = 8, planted.test
    service = SimulatedService.of(planted_runs["encode"], planted)
    items = Items.of(service.network, service.gatherer.L, planted.known)
    stream = Stream(items)
    start = planted.sequences.start[requests.cut]
    found = []
    for begin, cut in zip(start.tolist(), requests.cut.tolist(), strict=True):
        *_, (seen, both, _) = stream.run(behaviors_of(planted, begin, cut), step)
        assert cut - begin - seen < step
        found.append(both.cold)
    stale = requests._replace(as_of=start + planted.history(requests) // step * step)
    assert len(np.unique(stale.cut - stale.as_of)) > 1
    (ctrs,) = service.stored(stale, [found], step - 1)
    expected = predict(service.network, service.gatherer, stale)
    np.testing.assert_allclose(ctrs, expected, atol=1e-5)
