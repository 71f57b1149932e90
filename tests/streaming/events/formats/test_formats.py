"""What all formats have alike: whatever a producer sent is an answer, and a preset gives way."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.settings import EventSettings, FormatName
from streaming.events.conversion import Event
from streaming.events.decoder import EventDecoder
from streaming.events.formats import with_preset
from streaming.events.formats.format import Headers
from streaming.events.rejects import Ignored, Rejected
from tests.schema_registry import registry_double
from tests.streaming.events.formats.producing import SAMPLES, asked, register_sample

FORMATS = get_args(FormatName)
NOW = 1_800_000_000_000

VALUES = [
    base64.b64decode(value) if file.suffix == ".b64" else value
    for file in sorted(SAMPLES.iterdir())
    for value in file.read_bytes().split(b"\n")
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["op", "after", "payload", "schema", "fields", "data", "specversion", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def spoilt(value: bytes, at: int, byte: int) -> bytes:
    at %= len(value) or 1
    return value[:at] + bytes([byte]) + value[at + 1 :]


SENT = (
    st.binary(max_size=64)
    | JSON.map(lambda found: repr(found).replace("'", '"').replace("None", "null").encode())
    | st.builds(spoilt, st.sampled_from(VALUES), st.integers(0, 4000), st.integers(0, 255))
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type"]),
        st.none() | st.sampled_from([b"1.0", b"application/json", b"\xff"]),
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EventDecoder]]:
    """One of each format, with a registry that has its sample's schema."""
    with ExitStack() as stack:
        found = {}
        for name in FORMATS:
            registry = stack.enter_context(registry_double())
            register_sample(name, registry, tmp_path_factory.mktemp(name))
            found[name] = EventDecoder(EventSettings(format=name), asked(registry))
        yield found


@pytest.mark.parametrize("name", FORMATS)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(key=st.none() | st.binary(max_size=8), value=st.none() | SENT, headers=HEADERS)
def test_whatever_was_sent_is_an_event_or_ignored_or_refused(
    decoders: dict[str, EventDecoder],
    name: str,
    key: bytes | None,
    value: bytes | None,
    headers: Headers,
) -> None:
    for outcome in decoders[name].outcomes(key, value, headers, NOW):
        assert isinstance(outcome, Event | Rejected | Ignored)
        assert not isinstance(outcome, Rejected) or "\n" not in outcome.detail


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_set_goes_before_a_preset(name: FormatName) -> None:
    said = EventSettings(format=name, fields={"item_id": "mine"}, time_unit="us", key="user")
    laid = with_preset(said)
    assert (laid.fields["item_id"], laid.time_unit, laid.key) == ("mine", "us", "user")
    assert set(with_preset(EventSettings(format=name)).fields) - {"item_id"} <= set(laid.fields)


def test_a_preset_names_no_action_that_is_not_declared() -> None:
    few = EventSettings(format="segment", action_names=("view",))
    assert with_preset(few).actions == {"Product Viewed": "view"}
