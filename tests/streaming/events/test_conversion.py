"""The conversion of one event: the first thing wrong is told, and constants obey the rules."""

from __future__ import annotations

from typing import Any

import pytest

from infra.behaviors import category_key, item_key, pack_behavior
from infra.errors import SettingsError
from infra.settings import EventSettings
from streaming.events.conversion import Conversion, Event
from streaming.events.rejects import Rejected

NOW = 1_700_000_000_000
ROW: dict[str, Any] = {"user_id": "u", "item_id": "i", "action": "click", "event_time": NOW}


def test_an_event_is_what_every_rule_accepted() -> None:
    row = ROW | {"event_id": 5, "category_id": "c", "dwell_ms": "7"}
    event = Conversion(EventSettings()).convert(row.get, NOW)
    assert event == Event("u", "i", 2, NOW, "5", "c", 7)
    assert event.pack() == pack_behavior(item_key("i"), NOW, category_key("c"), 7, 2)


def test_the_first_thing_wrong_is_told() -> None:
    wrong = {"user_id": True, "item_id": "", "action": "?", "event_time": -1}
    optional = {"event_id": [], "category_id": {}, "dwell_ms": -1}
    for name in (*wrong, *optional):
        with pytest.raises(Rejected, match=f"^{name} "):
            Conversion(EventSettings()).convert((wrong | optional).get, NOW)
        wrong |= {name: ROW[name]} if name in ROW else {}
        optional |= {} if name in ROW else {name: None}


@pytest.mark.parametrize(
    "constants",
    [
        {"dwell_ms": "long"},
        {"dwell_ms": -1},
        {"user_id": "u\0"},
        {"category_id": "c" * 300},
        {"event_time": 5},
        {"source": "s\0"},
    ],
)
def test_a_constant_that_no_event_could_carry_is_a_wrong_setting(constants: dict[str, Any]) -> None:
    (name,) = constants
    with pytest.raises(SettingsError, match=f"events.constants: {name} .*; give a value"):
        Conversion(EventSettings(constants=constants))
