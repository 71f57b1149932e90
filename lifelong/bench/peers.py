"""The peers of ``lifelong bench stream``, each in a process of its own.

``python -m lifelong.bench.peers NAME BOOTSTRAP TOPIC EVENTS DIRECTORY REGISTRY`` consumes EVENTS
events from the start of TOPIC and prints ``{"events": ..., "seconds": ...}``: from the first event
handled to the last, start-up not counted. Each keeps what our worker keeps, as its documentation
suggests.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

LENGTH: Final = 1000
"""Behaviors in a rolling list, as many as ours keeps."""


class Meter:
    """Counts events; knows when the last expected one is done."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._count = 0
        self._started = 0.0

    def tick(self) -> bool:
        """Count one event; whether it was the last."""
        if not self._count:
            self._started = time.perf_counter()
        self._count += 1
        return self._count == self._expected

    def report(self) -> None:
        """Print the result and leave at once: closing down is not part of it."""
        seconds = time.perf_counter() - self._started
        result = json.dumps({"events": self._count, "seconds": seconds})
        # Faust puts its logger in the place of sys.stdout.
        print(result, file=sys.__stdout__, flush=True)


def faust_raw(bootstrap: str, topic: str, events: int, directory: Path) -> None:
    """An ordinary Faust agent that decodes each event and does nothing else."""
    _run_faust(bootstrap, topic, events, directory, keep_lists=False)


def faust_table(bootstrap: str, topic: str, events: int, directory: Path) -> None:
    """An ordinary Faust agent that keeps each user's last 1,000 items in a Faust table."""
    _run_faust(bootstrap, topic, events, directory, keep_lists=True)


def _run_faust(
    bootstrap: str, topic: str, events: int, directory: Path, *, keep_lists: bool
) -> None:
    import faust

    app = faust.App(
        f"peer-{uuid.uuid4().hex[:8]}",
        broker=f"kafka://{bootstrap}",
        datadir=str(directory),
        store="memory://",
        web_enabled=False,
        topic_partitions=_partitions(bootstrap, topic),
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        broker_max_poll_records=4000,
    )
    table = app.Table("sequences", default=list) if keep_lists else None
    meter = Meter(events)

    @app.agent(app.topic(topic, value_serializer="json"))
    async def consume(stream: Any) -> None:
        async for event in stream:
            if table is not None:
                user = event["user_id"]
                table[user] = [*table[user], event["item_id"]][-LENGTH:]
            if meter.tick():
                meter.report()
                _leave()

    _serve(app)


def _serve(app: Any) -> None:
    from faust.worker import Worker

    loop = asyncio.new_event_loop()
    Worker(app, loop=loop, loglevel="ERROR", quiet=True).execute_from_commandline()


def quix(bootstrap: str, topic: str, events: int, directory: Path) -> None:
    """A Quix Streams application that keeps each user's last 1,000 items in its state."""
    _run_quix(bootstrap, topic, events, directory, "json")


def quix_envelopes(bootstrap: str, topic: str, events: int, directory: Path) -> None:
    """The same, of records that are arrays of events."""
    _run_quix(bootstrap, topic, events, directory, "json", expand=True)


def quix_avro(bootstrap: str, topic: str, events: int, directory: Path) -> None:
    """The same, of records in Avro by the schemas of a registry."""
    from quixstreams.models import SchemaRegistryClientConfig
    from quixstreams.models.serializers.avro import AvroDeserializer

    registry = SchemaRegistryClientConfig(url=sys.argv[6])
    deserializer = AvroDeserializer(schema_registry_client_config=registry)
    _run_quix(bootstrap, topic, events, directory, deserializer)


def _run_quix(
    bootstrap: str,
    topic: str,
    events: int,
    directory: Path,
    deserializer: Any,
    *,
    expand: bool = False,
) -> None:
    from quixstreams import Application

    application = Application(
        broker_address=bootstrap,
        consumer_group=f"peer-{uuid.uuid4().hex[:8]}",
        auto_offset_reset="earliest",
        state_dir=str(directory),
        loglevel="ERROR",
    )
    meter = Meter(events)

    def keep(event: dict[str, Any], state: Any) -> None:
        state.set("items", [*state.get("items", []), event["item_id"]][-LENGTH:])
        if meter.tick():
            meter.report()
            _leave()

    frame = application.dataframe(application.topic(topic, value_deserializer=deserializer))
    if expand:
        frame = frame.apply(lambda events: events, expand=True)
    frame.apply(keep, stateful=True)
    application.run()


def _partitions(bootstrap: str, topic: str) -> int:
    from infra.kafka.admin import topic_partitions

    return topic_partitions(bootstrap, topic)


def _leave() -> None:
    os._exit(0)


PEERS: Final[dict[str, Callable[[str, str, int, Path], None]]] = {
    "faust-raw": faust_raw,
    "faust-table": faust_table,
    "quix": quix,
    "quix-envelopes": quix_envelopes,
    "quix-avro": quix_avro,
}


if __name__ == "__main__":
    name, bootstrap, topic, events, directory = sys.argv[1:6]
    PEERS[name](bootstrap, topic, int(events), Path(directory))
