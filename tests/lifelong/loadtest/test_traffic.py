"""Users, items and events of a load test."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from infra.behaviors import BEHAVIOR, item_key
from infra.settings import EventSettings
from lifelong.loadtest.traffic import Traffic, made_up, message
from streaming.events.decoder import EventDecoder

NOW = 1_700_000_100_000
EVENT = {
    "event_id": "1",
    "user_id": "ann",
    "item_id": "22423",
    "action": "purchase",
    "event_time": 1_700_000_000_250,
}


def traffic(items: int) -> Traffic:
    shares = 1 / np.arange(1, items + 1) ** 2
    users = made_up(3)
    names = [f"item-{number}" for number in range(items)]
    return Traffic(users, users, names, shares / shares.sum(), np.random.default_rng(1))


@pytest.mark.parametrize("B", [1, 10, 50])
def test_candidates_are_distinct(B: int) -> None:
    for candidates in traffic(50).candidates(B):
        assert len(set(candidates)) == len(candidates) == B


def test_popular_items_are_met_most() -> None:
    events = traffic(50).of_events(500)
    items = [item for _, item in events]

    assert items.count("item-0") > items.count("item-10")
    assert {user for user, _ in events} == {"loadtest-0", "loadtest-1", "loadtest-2"}


def test_an_event_has_the_shape_that_the_settings_name() -> None:
    settings = EventSettings(fields={"user_id": "of.user", "event_time": "of.ts"}, time_unit="iso")
    sent = msgspec.json.decode(message(EVENT, settings)["value"])

    assert sent["of"] == {"user": "ann", "ts": "2023-11-14T22:13:20.250000+00:00"}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "iso"])
def test_a_worker_reads_the_event_as_it_was_meant(unit: str) -> None:
    settings = EventSettings.model_validate(
        {"fields": {"item_id": "payload.sku", "event_time": "payload.at"}, "time_unit": unit}
    )
    told = message(EVENT, settings)

    decoded = EventDecoder(settings).decode_batch([(0, told["key"], told["value"])], NOW)

    (append,) = decoded.appends
    (behavior,) = np.frombuffer(append.behaviors[0], BEHAVIOR)
    assert (append.user, behavior["time"]) == ("ann", EVENT["event_time"])
    assert behavior["item"] == item_key("22423")
