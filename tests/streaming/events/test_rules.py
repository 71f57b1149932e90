from __future__ import annotations

import pytest

from infra.settings import EventSettings
from streaming.events.rejects import Ignored
from streaming.events.rules import Rules


def reason(event: dict[str, object], **settings: object) -> str | None:
    try:
        Rules(EventSettings.model_validate(settings)).check(event)
    except Ignored as ignored:
        return ignored.reason
    return None


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"type": "track", "v": 2}, None),
        ({"type": "track", "v": "2"}, None),
        ({"type": "page", "v": 2}, "type"),
        ({"type": "track", "v": 3}, "v"),
        ({"v": 2}, "type"),
        ({"type": None, "v": 2}, "type"),
        ({"type": {"is": "track"}, "v": 2}, "type"),
    ],
)
def test_only_names_what_behaviors_have(event: dict[str, object], expected: str | None) -> None:
    assert reason(event, only={"type": "track", "v": [1, 2]}) == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"by": {"bot": True}}, "by.bot"),
        ({"by": {"bot": False}}, None),
        ({"by": 1}, None),
        ({}, None),
    ],
)
def test_ignore_names_what_others_have(event: dict[str, object], expected: str | None) -> None:
    assert reason(event, ignore={"by.bot": True}) == expected


def test_a_rule_without_values_rules_nothing_out() -> None:
    rules = Rules(EventSettings(only={"type": ()}))
    assert not rules
    rules.check({})
