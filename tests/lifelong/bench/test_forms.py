from typing import Any

import msgspec
import pytest

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings, RegistrySettings
from lifelong.bench.forms import ENVELOPE, FORMS, JSON, Topic, _registry, composed
from lifelong.bench.worker import Run
from streaming.events.decoder import EventDecoder

NOW = 1_700_000_000_000


def events(count: int) -> list[dict[str, Any]]:
    """Of two users in turn."""
    made = []
    for number in range(count):
        event = {
            "event_id": f"e{number}",
            "user_id": f"u{number % 2}",
            "item_id": f"i{number}",
            "action": "purchase",
            "event_time": NOW + number,
        }
        key = str(event["user_id"]).encode()
        made.append({"key": key, "value": msgspec.json.encode(event)})
    return made


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.key)
def test_the_same_events_come_in_every_form(form: Any) -> None:
    single = events(2 * ENVELOPE + 6)
    records = form.pack(single)
    with _registry() as url:
        settings = EventSettings(format=form.format)
        decoder = EventDecoder(settings, SchemaRegistry(RegistrySettings(url=url)))
        found = decoder.decode_batch(
            [(n, one["key"], one["value"]) for n, one in enumerate(records)], NOW + 1000
        )
    plain = EventDecoder(EventSettings()).decode_batch(
        [(n, one["key"], one["value"]) for n, one in enumerate(single)], NOW + 1000
    )
    assert found.rejects == []
    assert {one.user: one.behaviors for one in found.appends} == {
        one.user: one.behaviors for one in plain.appends
    }
    if form.key == "envelopes":
        assert len(records) == 4


def test_each_form_is_held_against_json_of_its_round() -> None:
    def run(rate: float, processor_us: float) -> Run:
        return Run(1, rate, processor_us, 0.0, 0.0, None, 0, 0, 0)

    plain = Topic(JSON, "a", [run(100, 9.0), run(50, 9.0)], [10.0, 10.0])
    other = Topic(FORMS[1], "b", [run(300, 3.0), run(100, 4.5)], [30.0, 10.0])

    figures = composed([plain, other], 1)["figures"]

    assert figures["envelopes_to_json"] == 2.5
    assert figures["envelopes_processor_us"] == 3.75
    assert figures["envelopes_processor_to_json"] == 2.5
    assert figures["envelopes_quix_ratio"] == 10.0
