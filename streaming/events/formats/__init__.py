"""Formats of records, siblings of one shape: a `Preset` and a class that is a `Format`.

`json` is one event, an array or one a line; `cloudevents`, `segment`, `snowplow` and `debezium`
are what their names say; `avro`, `protobuf` and `json_schema` are of a Schema Registry.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from infra.schema_registry import SchemaRegistry
from infra.settings import EventSettings
from streaming.events.formats.format import Format, Preset

_MAPPINGS: Final = ("fields", "constants", "only", "ignore")
_CHOICES: Final = ("time_unit", "key", "split")


def open_format(settings: EventSettings, registry: SchemaRegistry) -> Format:
    """The format of a source.

    Args:
        settings: the source's.
        registry: is asked for schemas, by formats that have such.

    Raises:
        SettingsError: what it needs is not installed, or there is no registry.
    """
    opened: Format = _module(settings).open_format(settings, registry)
    return opened


def with_preset(settings: EventSettings) -> EventSettings:
    """A source's settings over what is usual in its format."""
    preset: Preset = _module(settings).PRESET
    laid: dict[str, Any] = {
        name: {**getattr(preset, name), **getattr(settings, name)} for name in _MAPPINGS
    }
    usual = {
        theirs: ours for theirs, ours in preset.actions.items() if ours in settings.action_names
    }
    laid["actions"] = {**usual, **settings.actions}
    laid |= {
        name: getattr(preset, name) for name in _CHOICES if name not in settings.model_fields_set
    }
    return settings.model_copy(update=laid)


def _module(settings: EventSettings) -> Any:
    # Only what is used is imported: some need packages of an extra.
    return import_module(f"{__name__}.{settings.format}")
