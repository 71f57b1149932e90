"""Snowplow: enriched events, a line of 131 columns between tabs, read by Snowplow's own SDK.

A raw event has the names of columns; self-describing events and contexts are under names that the
SDK makes of their schemas, ``unstruct_event_VENDOR_NAME_MODEL`` an object and
``contexts_VENDOR_NAME_MODEL`` an array. What is usual are the schemas of its e-commerce plugin, of
whose actions each product is an event.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from infra.errors import SettingsError, one_line
from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats.format import Format, Headers, Preset, RawEvent
from streaming.events.paths import top_of
from streaming.events.payloads import framing
from streaming.events.rejects import Reason, Rejected, show

_OF_SHOPS: Final = "com_snowplowanalytics_snowplow_ecommerce"
_ACTION: Final = f"unstruct_event_{_OF_SHOPS}_snowplow_ecommerce_action_1"
_PRODUCT: Final = f"contexts_{_OF_SHOPS}_product_1"

PRESET: Final = Preset(
    fields={
        "event_id": "event_id",
        "user_id": ("user_id", "domain_userid"),
        "item_id": f"{_PRODUCT}.id",
        "action": f"{_ACTION}.type",
        "event_time": ("derived_tstamp", "collector_tstamp"),
        "category_id": f"{_PRODUCT}.category",
    },
    actions={
        "product_view": "view",
        "list_click": "click",
        "add_to_cart": "cart",
        "transaction": "purchase",
    },
    only={"event_name": ("snowplow_ecommerce_action",)},
    time_unit="iso",
    # By default the enricher's partitions are those of an address or of an event.
    key="any",
    split=_PRODUCT,
)

_BEGINNINGS: Final = {
    "contexts": "contexts_",
    "derived_contexts": "contexts_",
    "unstruct_event": "unstruct_event_",
}
"""Columns that become fields whose names begin so."""


class SnowplowFormat:
    """Reads enriched events; of their columns those that the settings name."""

    def __init__(self, settings: EventSettings) -> None:
        try:
            from snowplow_analytics_sdk import event_transformer
            from snowplow_analytics_sdk.snowplow_event_transformation_exception import (
                SnowplowEventTransformationException,
            )
        except ImportError:
            raise SettingsError(
                "format snowplow needs its SDK: install the extra, pip install 'lifelong[snowplow]'"
            ) from None
        self._transform = event_transformer.transform
        self._failed = SnowplowEventTransformationException
        self._columns = _columns(event_transformer.ENRICHED_EVENT_FIELD_TYPES, settings)

    def read(
        self, _key: bytes | None, value: bytes | None, _headers: Headers
    ) -> Sequence[RawEvent | Rejected]:
        """See `Format`."""
        if not value:
            raise Rejected(Reason.EMPTY, "no payload")
        try:
            line = value.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise Rejected(Reason.BAD_TEXT, f"{framing(value) or show(value)}, no UTF-8") from None
        try:
            event: RawEvent = self._transform(
                line, known_fields=self._columns, add_geolocation_data=False
            )
        except self._failed as error:
            told = getattr(error, "error_messages", None) or [str(error)]
            raise Rejected(Reason.BAD_FORMAT, f"no enriched event: {one_line(told[0])}") from None
        except Exception as error:  # noqa: BLE001 - whatever a library does with what was sent
            raise Rejected(Reason.BAD_FORMAT, f"no enriched event: {one_line(error)}") from None
        return [event]

    def keep(self, _value: bytes, _places: Collection[int]) -> bytes | None:
        """None: an element of a context has no line of its own."""
        return None


def open_format(settings: EventSettings, _registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return SnowplowFormat(settings)


_Column = tuple[str, Callable[[str, str], Any]]


def _columns(known: Sequence[_Column], settings: EventSettings) -> list[_Column]:
    """The columns as the SDK takes them; those that no path begins with give nothing."""
    paths = [*settings.only, *settings.ignore, *([settings.split] if settings.split else [])]
    for theirs in settings.fields.values():
        paths += [theirs] if isinstance(theirs, str) else theirs
    tops = {top_of(path) for path in paths}
    if None in tops:
        return list(known)
    names = {str(top) for top in tops}

    def needed(name: str) -> bool:
        beginning = _BEGINNINGS.get(name)
        if beginning is None:
            return name in names
        return any(top.startswith(beginning) for top in names)

    return [(name, convert if needed(name) else _nothing) for name, convert in known]


def _nothing(_name: str, _value: str) -> tuple[()]:
    return ()
