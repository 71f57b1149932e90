from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from infra.settings import EventSettings
from streaming.events.decoder import EventDecoder
from tests.streaming.events.formats.events import NOW, brief, outcomes

CLOUD = EventSettings(format="cloudevents", actions={"shop.view": "view"})
DATA = {"user_id": "u", "item_id": "i"}
ATTRIBUTES = {
    "specversion": "1.0",
    "id": "7",
    "source": "/shop",
    "type": "shop.view",
    "time": "2026-10-05T14:48:00.120Z",
}


def headers(**changes: bytes | None) -> list[tuple[str, bytes | None]]:
    made: dict[str, bytes | None] = {f"ce_{name}": of.encode() for name, of in ATTRIBUTES.items()}
    return [(name, of) for name, of in (made | changes).items() if of is not None]


def structured(**changes: Any) -> dict[str, Any]:
    return {**ATTRIBUTES, "data": DATA} | changes


def test_an_event_in_structured_mode() -> None:
    [event] = outcomes(CLOUD, structured())
    assert event[:2] == ("u", "i")
    assert event[3] == 1_791_211_680_120


def test_an_event_in_binary_mode_has_its_attributes_in_headers() -> None:
    assert outcomes(CLOUD, DATA, headers=headers()) == outcomes(CLOUD, structured())


def test_a_batch_holds_several() -> None:
    batch = [structured(), structured(id="8"), structured(specversion="0.3"), structured(id="")]
    assert brief(CLOUD, batch) == [
        ("u", "i", "/shop 7"),
        ("u", "i", "/shop 8"),
        "bad_format",
        "bad_format",
    ]


def test_data_may_be_base64() -> None:
    event = structured(data_base64=base64.b64encode(json.dumps(DATA).encode()).decode())
    del event["data"]
    assert brief(CLOUD, event) == [("u", "i", "/shop 7")]
    assert brief(CLOUD, event | {"data_base64": "?"}) == ["bad_format"]


def test_ids_of_two_sources_are_two() -> None:
    [one], [other] = (brief(CLOUD, structured(source=of)) for of in ("/shop", "/app"))
    assert one[2] != other[2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ce_id": None}, "bad_format"),
        ({"ce_type": b"\xff"}, "bad_text"),
        ({"content-type": b"application/avro"}, "bad_format"),
        ({"content-type": b"application/vnd.shop+json; charset=utf-8"}, None),
        ({"ce_time": None}, "missing_field"),
    ],
)
def test_headers_are_judged(changes: dict[str, bytes | None], reason: str | None) -> None:
    [found] = brief(CLOUD, DATA, headers=headers(**changes))
    assert found == (reason or ("u", "i", "/shop 7"))


def test_what_is_no_cloud_event_is_refused() -> None:
    assert brief(CLOUD, DATA) == ["bad_format"]


SPLIT = EventSettings(
    format="cloudevents",
    actions={"shop.view": "view"},
    split="data.items",
    fields={"item_id": "data.items.sku"},
)


@pytest.mark.parametrize("mode", ["structured", "binary", "base64"])
def test_elements_of_data_are_cut_where_they_can_be(mode: str) -> None:
    data = {"user_id": "u", "items": [{"sku": "a"}, {"sku": 1.5}, {"sku": "c"}]}
    sent = data if mode == "binary" else structured(data=data)
    if mode == "base64":
        del sent["data"]
        sent["data_base64"] = base64.b64encode(json.dumps(data).encode()).decode()
    value = json.dumps(sent).encode()

    found = EventDecoder(SPLIT).decode(
        [7], [b"u"], [value], NOW, [headers() if mode == "binary" else []]
    )

    [refused] = found.rejects
    if mode == "structured":
        kept = json.loads(refused.value or b"")["data"]["items"]
        assert (found.events, refused.events, kept) == (2, 1, [None, {"sku": 1.5}, None])
    else:
        assert (found.events, refused.events, refused.value) == (0, 3, value)
        assert "cannot be cut" in refused.detail
