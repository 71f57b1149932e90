from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractor.extract import Extractor
from infra.store import StoredSequence, Version
from lifelong.experiments import extra_tables
from lifelong.experiments.staleness import _Scorer, measure_staleness, measure_warm_starts
from lifelong.experiments.streams import Items, Stream, agreement, behaviors_of, nearest
from models.config import read_config
from models.data import Requests
from models.interactions import Floats
from models.metrics import auc
from models.protocols import LastOfUser, NextItem, Split, split_requests
from models.training import predict, train
from tests.models.generated import planted_interactions

M, L = 4, 16
METHODS = {"encode": {"K": 4, "m": 4}, "din-l": {}}


@pytest.fixture(scope="module")
def samples() -> Split:
    """Users of 72 behaviors, the last of them at test."""
    interactions = planted_interactions(users=40, items=40, baskets=18)
    protocol = NextItem(negatives=2, evaluation_negatives=9)
    return split_requests(interactions, protocol, LastOfUser(1, 3))


@pytest.fixture(scope="module")
def runs(samples: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {}
    for name, method in METHODS.items():
        config = read_config(
            {
                "network": {"d": 8, "M": M, "hidden": [8, 4]},
                "long_term": {"network": name, "L": L, **method},
                "training": {"batch": 256, "learning_rate": 0.01, "threads": 1, "device": "cpu"},
            }
        )
        paths[name] = tmp_path_factory.mktemp("runs") / name
        train(config, samples, paths[name])
    return paths


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


def without_time(report: dict[str, Any]) -> dict[str, Any]:
    """A report without the figure that differs from run to run."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(part) for key, part in value.items() if key != "cpu_ms"}
        return [strip(part) for part in value] if isinstance(value, list) else value

    stripped: dict[str, Any] = strip(report)
    return stripped


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["fresh", "attended", "recent", "unseen"])
def test_at_no_staleness_every_variant_is_the_network_itself(
    samples: Split, runs: dict[str, Path], method: str, variant: str
) -> None:
    scorer = _Scorer.of(runs[method], samples)
    expected = predict(scorer.network, scorer.gatherer, samples.test)
    ctrs: Floats = getattr(scorer, variant)(samples.test, 0)
    np.testing.assert_allclose(ctrs, expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_unseen_changes_nothing(samples: Split, runs: dict[str, Path], method: str) -> None:
    n, requests = 6, last_of_users(samples)
    newer = requests.cut[:, None] - 1 - np.arange(n)
    other = with_items(samples, newer, samples.sequences.items[newer - 30])
    before, after = (_Scorer.of(runs[method], each) for each in (samples, other))
    np.testing.assert_array_equal(before.unseen(requests, n), after.unseen(requests, n))
    for variant in ("attended", "recent", "longer"):
        if variant == "longer":
            changed = before.fresh(requests, n), after.fresh(requests, n)
        else:
            changed = tuple(getattr(each, variant)(requests, n) for each in (before, after))
        assert np.abs(changed[0] - changed[1]).max() > 1e-3


def test_what_is_unseen_is_missed_at_the_time_of_the_request(
    samples: Split, runs: dict[str, Path]
) -> None:
    """The same users, and as long since the last behavior that is seen as it really is."""
    scorer = _Scorer.of(runs["encode"], samples)
    stale = scorer._before(samples.test, 5)
    np.testing.assert_array_equal(samples.users(stale), samples.users(samples.test))
    np.testing.assert_array_equal(stale.times, samples.sequences.times[samples.test.cut])
    batch = scorer.gatherer(stale)
    assert not batch.newer.any()
    known = scorer.gatherer(samples.test)
    np.testing.assert_array_equal(batch.rows[:, -(L - 5) :], known.rows[:, : L - 5])


def test_stale_interests_do_not_see_what_the_recent_behaviors_do(
    samples: Split, runs: dict[str, Path]
) -> None:
    """Behaviors newer than the interests and older than the M recent ones count as candidates
    bought before, and for nothing else.
    """
    n, requests = 8, last_of_users(samples)
    between = requests.cut[:, None] - n + np.arange(n - M)
    items = samples.sequences.items[between]
    shown = (items[:, :, None] == requests.candidates[:, None]).any((1, 2))
    requests, between = requests.part(np.flatnonzero(~shown)), between[~shown]
    assert len(requests.cut) > 3
    others = np.array(
        [np.setdiff1d(np.arange(1, 41), row)[: n - M] for row in requests.candidates], np.int32
    )
    changed = with_items(samples, between, others)
    before, after = (_Scorer.of(runs["encode"], each) for each in (samples, changed))
    np.testing.assert_array_equal(before.recent(requests, n), after.recent(requests, n))
    assert (before.attended(requests, n) != after.attended(requests, n)).any()


def test_each_staleness_is_measured_beside_the_fresh_on_the_same_requests(
    samples: Split, runs: dict[str, Path]
) -> None:
    options = {"newer": [10, 69], "between": [3], "at_least": 10, "replicates": 20}
    report = measure_staleness(runs, samples, options)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert "| 69 |" in "\n".join(extra_tables.parts({"staleness": [report] * 2}))
    history = samples.history(samples.test)
    scorer = _Scorer.of(runs["encode"], samples)
    for found in report["runs"]["encode"]["stale"]:
        requests = samples.test.part(np.flatnonzero(history > found["n"]))
        assert found["requests"] == len(requests.cut)
        fresh = auc(predict(scorer.network, scorer.gatherer, requests), requests.labels)
        measures = found["measures"]
        assert measures["fresh"]["auc"] == pytest.approx(fresh)
        if found["n"] == 3:
            assert not found["differences"]
            continue
        observed = found["differences"]["attended"]["fresh"]["auc"]["observed"]
        assert observed == pytest.approx(measures["attended"]["auc"] - fresh)
        assert found["behaviors"]["fresh"] == L


def test_it_says_where_no_past_is_long_enough(samples: Split, runs: dict[str, Path]) -> None:
    options = {"newer": [1000], "between": []}
    (found,) = measure_staleness(runs, samples, options)["runs"]["encode"]["stale"]
    assert found["requests"] == 0
    assert found["note"].startswith("0 of 120 requests have more than 1000 earlier behaviors")


def test_without_interests_attending_is_seeing_more(samples: Split, runs: dict[str, Path]) -> None:
    scorer = _Scorer.of(runs["din-l"], samples)
    requests = samples.test
    np.testing.assert_allclose(scorer.attended(requests, 9), scorer.fresh(requests, 9), atol=1e-6)


def test_stored_interests_give_what_the_network_gives(
    samples: Split, runs: dict[str, Path]
) -> None:
    """The extractor's cold clustering and the network's, whatever has come since."""
    step, requests = 8, samples.test
    scorer = _Scorer.of(runs["encode"], samples)
    items = Items.of(scorer.network, scorer.gatherer.L, samples.known)
    stream = Stream(items)
    start = samples.sequences.start[requests.cut]
    found = []
    for begin, cut in zip(start.tolist(), requests.cut.tolist(), strict=True):
        *_, (seen, both, _) = stream.run(behaviors_of(samples, begin, cut), step)
        assert cut - begin - seen < step
        found.append(both.cold)
    stale = requests._replace(as_of=start + samples.history(requests) // step * step)
    assert len(np.unique(stale.cut - stale.as_of)) > 1
    (ctrs,) = scorer.stored(stale, [found], step - 1)
    expected = predict(scorer.network, scorer.gatherer, stale)
    np.testing.assert_allclose(ctrs, expected, atol=1e-5)


def test_an_empty_cluster_isnearest_to_nothing(samples: Split, runs: dict[str, Path]) -> None:
    items = Items.of(_Scorer.of(runs["encode"], samples).network, L, samples.known)
    ((_, both, _),) = Stream(items).run(behaviors_of(samples, 0, 2), 2)
    assert (both.cold.sizes == 0).any()
    opposite = -both.cold.centers[:2].sum(0, keepdims=True)
    (label,), cosine = nearest(opposite, both.cold)
    assert both.cold.sizes[label]
    assert cosine < 0


def test_warm_and_cold_begin_as_one_and_warm_goes_on_from_itself(
    samples: Split, runs: dict[str, Path]
) -> None:
    scorer = _Scorer.of(runs["encode"], samples)
    items = Items.of(scorer.network, L, samples.known)
    extractor = Extractor(items)
    behaviors = behaviors_of(samples, 0, 72)
    first, second, third, *_ = Stream(items).run(behaviors, 8)
    np.testing.assert_array_equal(first[1].warm.centers, first[1].cold.centers)
    for (_, before, _), (seen, both, _) in ((first, second), (second, third)):
        assert both.warm.count == both.cold.count == seen
        sequence = StoredSequence(Version(1, seen), behaviors[:seen], {})
        again = extractor.extract(sequence, before.warm)
        np.testing.assert_array_equal(again.interests, both.warm.interests)


def test_warm_starts_are_measured_along_the_stream(samples: Split, runs: dict[str, Path]) -> None:
    options = {"steps": [4], "replicates": 20}
    report = measure_warm_starts(runs, samples, options)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert without_time(measure_warm_starts(runs, samples, options)) == without_time(report)
    assert "k-means" in report["runs"]["din-l"]["note"]
    assert "| 0 |" in "\n".join(extra_tables.parts({"warm-starts": report}))
    (stream,) = report["runs"]["encode"]["streams"]
    first, *later = stream["along"]
    assert first["warm_starts"] == [0, 0]
    assert first["agreement"] == 1
    assert first["objective"]["warm"] == first["objective"]["cold"]
    assert [each["warm_starts"] for each in later] == [[1, 1], [2, 3], [4, 7], [8, 15], [16, 16]]
    assert sum(each["requests"] for each in later) == stream["all"]["requests"] == 120
    assert stream["all"]["differences"]["auc"]["replicates"] == 20
    assert stream["end"]["reclusterings"] == stream["users"] == 40


def test_it_says_where_nothing_is_started_warm(samples: Split, runs: dict[str, Path]) -> None:
    found = measure_warm_starts(runs, samples, {"steps": [64]})["runs"]["encode"]["streams"]
    assert found[0]["note"].startswith("no request has 128 earlier behaviors")


def test_clusterings_agree_whatever_their_numbers() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    assert agreement(labels, 3 - labels, clusters=4) == 1
    assert agreement(labels, np.zeros(6, np.int64), clusters=4) == 0.5
