"""A load that is sent while it is measured."""

from __future__ import annotations

import time
from collections import Counter
from typing import cast

import msgspec
import numpy as np
import pytest

from lifelong.bench.feed import FOLLOWED, Ahead, Feed
from lifelong.demo.freshness import FreshnessProbe
from streaming.files.replay import SLICE, EventProducer, Message

USERS = 50
ENOUGH = 5 * SLICE


class Topic:
    """What was sent, in the place of a producer."""

    def __init__(self) -> None:
        self.users: list[str] = []

    @property
    def sent(self) -> int:
        return len(self.users)

    def send_messages(self, messages: list[Message]) -> None:
        self.users += [msgspec.json.decode(one["value"])["user_id"] for one in messages]

    def close(self) -> None:
        pass


class Followed:
    """Which events were followed, in the place of a probe."""

    def __init__(self) -> None:
        self.sent_events: list[tuple[str, int]] = []

    def sent(self, user: str, count: int) -> None:
        self.sent_events.append((user, count))


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def feed(topic: Topic) -> Feed:
    return Feed(cast("EventProducer", topic), "light", USERS)


def flow(feed: Feed, events: int, probe: Followed | None = None) -> None:
    """Have so many events sent more."""
    before = feed.sent
    with feed.flowing(Ahead(events), cast("FreshnessProbe | None", probe)):
        while feed.sent < before + events:
            time.sleep(0.001)


def test_followed_events_are_counted_over_all_that_was_sent_of_their_user(
    feed: Feed, topic: Topic
) -> None:
    followed = Followed()

    flow(feed, ENOUGH)
    flow(feed, ENOUGH, followed)

    counts: Counter[str] = Counter()
    wanted = []
    for place, user in enumerate(topic.users):
        counts[user] += 1
        if place >= ENOUGH and place % FOLLOWED == 0:
            wanted.append((user, counts[user]))
    assert followed.sent_events == wanted
    assert feed.users == len(counts) == USERS


def test_no_more_is_sent_ahead_of_the_worker_than_told() -> None:
    ahead = Ahead(3000)
    times = np.zeros(SLICE, np.int64)

    assert [ahead.ready(0.0, times) for _ in range(3)] == [SLICE, 3000 - SLICE, 0]
    ahead.applied = 10
    assert ahead.ready(0.0, times) == 10
