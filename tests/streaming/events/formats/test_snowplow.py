from __future__ import annotations

import json
from typing import Any

import pytest
from snowplow_analytics_sdk.event_transformer import ENRICHED_EVENT_FIELD_TYPES

from infra.settings import EventSettings
from tests.streaming.events.formats.events import brief, outcomes

SNOWPLOW = EventSettings(format="snowplow")
IGLU = "iglu:com.snowplowanalytics.snowplow"


def line(action: str = "product_view", *products: str, **columns: Any) -> bytes:
    """An enriched event of the e-commerce plugin."""
    of_shop = f"{IGLU}.ecommerce"
    act = {"schema": f"{of_shop}/snowplow_ecommerce_action/jsonschema/1-0-2"}
    entities = [
        {"schema": f"{of_shop}/product/jsonschema/1-0-0", "data": {"id": one, "category": "c"}}
        for one in products or ("p",)
    ]
    contexts = {"schema": f"{IGLU}/contexts/jsonschema/1-0-0", "data": entities}
    unstruct = {
        "schema": f"{IGLU}/unstruct_event/jsonschema/1-0-0",
        "data": act | {"data": {"type": action}},
    }
    row = {
        "event_id": "e",
        "domain_userid": "cookie",
        "event_name": "snowplow_ecommerce_action",
        "derived_tstamp": "2026-10-05 14:48:00.120",
        "contexts": json.dumps(contexts),
        "unstruct_event": json.dumps(unstruct),
    } | columns
    return "\t".join(row.get(name, "") for name, _ in ENRICHED_EVENT_FIELD_TYPES).encode()


def test_an_action_of_a_shop_is_a_behavior() -> None:
    [event] = outcomes(SNOWPLOW, line())
    assert event[:2] == ("cookie", "p")
    assert event[3] == 1_791_211_680_120


def test_who_has_logged_in_is_known_by_that() -> None:
    assert brief(SNOWPLOW, line(user_id="u")) == [("u", "p", "e/0")]


def test_each_product_is_an_event() -> None:
    found = brief(SNOWPLOW, line("transaction", "a", "b"))
    assert found == [("cookie", "a", "e/0"), ("cookie", "b", "e/1")]


def test_other_events_are_ignored() -> None:
    assert brief(SNOWPLOW, line(event_name="page_ping")) == ["event_name"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"a\tb", "bad_format"),
        (line(contexts="{"), "bad_format"),
        (line(derived_tstamp="yesterday"), "bad_time"),
        (line("product_view", "\ud800"), "bad_text"),
        (b"\xff\t", "bad_text"),
        (None, "empty"),
    ],
)
def test_what_is_no_enriched_event_is_refused(value: bytes | None, reason: str) -> None:
    assert brief(SNOWPLOW, value) == [reason]


def test_a_column_that_no_path_names_is_not_judged() -> None:
    assert brief(SNOWPLOW, line(page_urlport="no number")) == [("cookie", "p", "e/0")]
