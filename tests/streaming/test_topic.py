"""A topic's identity: its id, not its name, tells sources apart."""

from __future__ import annotations

import pytest

from streaming.topic import TopicIdentity


def test_a_topic_created_anew_is_another_source() -> None:
    identity = TopicIdentity("behaviors", lambda: "")

    assert identity.adopt("first") is False
    first = identity.source(3)
    assert identity.adopt("first") is False
    assert identity.adopt("second") is True
    second = identity.source(3)

    assert first.key != second.key
    assert first.owner == second.owner


@pytest.mark.parametrize(("found", "said"), [("name:cluster", 1), ("an id of Kafka's", 0)])
def test_brokers_without_ids_of_topics_are_told(
    caplog: pytest.LogCaptureFixture, found: str, said: int
) -> None:
    identity = TopicIdentity("behaviors", lambda: found)

    identity.adopt(found)
    identity.adopt(found)

    assert len(caplog.records) == said
