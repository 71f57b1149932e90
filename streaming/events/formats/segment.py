"""Segment: calls of its spec as JSON, of which ``track`` is a behavior.

Names of events and properties are those of its spec for e-commerce (version 2). An order has its
products in an array, each of which is an event of its own.
"""

from __future__ import annotations

from typing import Final

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats.format import Format, Preset
from streaming.events.formats.json import JsonFormat

PRESET: Final = Preset(
    fields={
        "event_id": "messageId",
        "user_id": ("userId", "anonymousId"),
        "item_id": ("properties.product_id", "properties.products.product_id"),
        "action": "event",
        "event_time": "timestamp",
        "category_id": ("properties.category", "properties.products.category"),
    },
    actions={
        "Product Clicked": "click",
        "Product Viewed": "view",
        "Product Added": "cart",
        "Product Added to Wishlist": "favorite",
        "Product Shared": "share",
        "Order Completed": "purchase",
    },
    only={"type": ("track",)},
    time_unit="iso",
    split="properties.products",
)


def open_format(settings: EventSettings, _registry: SchemaRegistry) -> Format:
    """See `streaming.events.formats.open_format`."""
    return JsonFormat(settings)
