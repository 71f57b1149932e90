"""A topic's identity: its id, not its name, tells sources apart."""

from __future__ import annotations

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
