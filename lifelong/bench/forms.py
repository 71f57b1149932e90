"""``lifelong bench stream --forms``: the same events in other forms, of records and of batches.

The shipped purchases, each time by one worker as users start it: as single JSON events; many of a
user in an array, as a collector sends that waits for some; in Avro by a registry's schema; and JSON
in batches that lz4 or zstd compressed. JSON comes in each round, so that each form is held against
it on the machine as it is by then. Quix Streams reads the same topics, where it has a way to.
"""

from __future__ import annotations

import io
import json
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from lifelong.bench.loads import LOADS, write_load
from lifelong.bench.report import compose
from lifelong.bench.stream import LOOK_S, OURS_S, PARTITIONS, peer
from lifelong.bench.worker import Run, started
from lifelong.shipped import MAPPING
from streaming.files.reader import EventFile
from streaming.files.replay import EventProducer, Message, encode_batch

ENVELOPE: Final = 50
"""Most events of a record that has several."""

SLICE: Final = 1000
"""Messages that a producer is handed at once."""

SCHEMA: Final[dict[str, Any]] = {
    "type": "record",
    "name": "Behavior",
    "namespace": "shop",
    "fields": [
        {"name": "event_id", "type": "string"},
        {"name": "user_id", "type": "string"},
        {"name": "item_id", "type": "string"},
        {
            "name": "action",
            "type": {"type": "enum", "name": "Action", "symbols": ["view", "click", "purchase"]},
        },
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "category_id", "type": ["null", "string"], "default": None},
    ],
}
"""What the events are in Avro: as many fields as in JSON, of the types that producers give them."""

FRAME: Final = b"\0\0\0\0\1"
"""Before each record of Avro: the schema is the registry's first."""


@dataclass(frozen=True, slots=True)
class Form:
    """How events come."""

    name: str
    key: str
    """Of its figures."""
    quix: str
    """Which of `lifelong.bench.peers` reads it."""
    pack: Callable[[Sequence[Message]], list[Message]] = list
    """Makes records of single events in JSON."""
    compression: str = "none"
    format: str = "json"


def in_envelopes(events: Sequence[Message]) -> list[Message]:
    """Each user's events in arrays of `ENVELOPE`, the last of what is left."""
    packed = []
    for key, of_user in groupby(sorted(events, key=itemgetter("key")), itemgetter("key")):
        values = [event["value"] for event in of_user]
        packed += [
            {"key": key, "value": b"[" + b",".join(values[at : at + ENVELOPE]) + b"]"}
            for at in range(0, len(values), ENVELOPE)
        ]
    return packed


def in_avro(events: Sequence[Message]) -> list[Message]:
    """Each event as a registry's serializer writes it."""
    from fastavro import parse_schema, schemaless_writer

    schema, packed = parse_schema(SCHEMA), []
    for event in events:
        text = io.BytesIO()
        schemaless_writer(text, schema, msgspec.json.decode(event["value"]))
        packed.append({"key": event["key"], "value": FRAME + text.getvalue()})
    return packed


JSON: Final = Form("JSON", "json", "quix")
FORMS: Final = (
    JSON,
    Form(f"envelopes of {ENVELOPE}", "envelopes", "quix-envelopes", in_envelopes),
    Form("Avro", "avro", "quix-avro", in_avro, format="avro"),
    Form("JSON, lz4", "lz4", "quix", compression="lz4"),
    Form("JSON, zstd", "zstd", "quix", compression="zstd"),
)


@dataclass(slots=True)
class Topic:
    """A form's topic, and what was measured on it, a round each."""

    form: Form
    name: str
    ours: list[Run] = field(default_factory=list)
    quix: list[float] = field(default_factory=list)
    """Events a second."""


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object.

    Raises:
        BrokerError: there is no Apache Kafka to measure with.
        ModuleNotFoundError: what it needs is not installed (extras `bench` and `registry`).
    """
    load = LOADS["purchases", quick]
    with (
        tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory,
        LocalKafka(Path(directory) / "kafka", kind="apache") as kafka,
        _registry() as registry,
    ):
        place = Path(directory)
        topics = fill(kafka.bootstrap, place, load.ours)
        for _ in range(load.rounds):
            for topic in topics:
                topic.ours.append(_measure(place, kafka.bootstrap, topic, load.ours, registry))
                quix = topic.form.quix
                topic.quix.append(
                    peer(quix, kafka.bootstrap, topic.name, load.quix, place, registry)
                )
    return composed(topics, load.ours)


def composed(topics: Sequence[Topic], events: int) -> dict[str, Any]:
    """The result: a row a form, and one for each that Quix reads. How each is to JSON is told round
    by round, since the machine's speed drifts; and in processor time an event, which whatever else
    runs on it changes little.
    """
    rounds = {topic.form.name: [run.events_per_second for run in topic.ours] for topic in topics}
    rounds |= {f"quix streams, {t.form.name}": t.quix for t in topics if t.quix}
    result = compose(JSON.name, rounds, "events/s", [])
    plain = topics[0].ours
    figures: dict[str, float] = {}
    rows: dict[str, list[float]] = {}
    for topic in topics:
        key, ours = topic.form.key, topic.ours
        told = {
            "to_json": median(
                one.events_per_second / two.events_per_second
                for one, two in zip(ours, plain, strict=True)
            ),
            "processor_us": median(one.processor_us for one in ours),
            "processor_to_json": median(
                two.processor_us / one.processor_us for one, two in zip(ours, plain, strict=True)
            ),
            "quix_ratio": median(
                one.events_per_second / theirs for one, theirs in zip(ours, topic.quix, strict=True)
            ),
        }
        rows[topic.form.name] = list(told.values())
        figures |= {f"{key}_{name}": value for name, value in told.items()}
        figures[f"{key}_events_per_second"] = median(one.events_per_second for one in ours)
    columns = ["x JSON", "processor us/event", "x JSON's", "x Quix"]
    return {
        **result,
        "peers": [name for name in rounds if name.startswith("quix")],
        "tables": [{"title": "a worker, beside", "columns": columns, "rows": rows}],
        "load": {"name": "purchases", "events": events},
        "figures": {name: round(value, 3) for name, value in figures.items()},
    }


def fill(bootstrap: str, place: Path, events: int) -> list[Topic]:
    """Put the same events onto a topic of each form."""
    file = place / "events.parquet"
    write_load("purchases", 0, events, file)
    rows = EventFile(file, MAPPING)
    singles = [
        message
        for batch in rows.batches()
        for message in encode_batch(batch, rows.identity, rows.actions)
    ]
    topics = []
    for form in FORMS:
        topic = Topic(form, f"bench-{form.key}-{uuid.uuid4().hex[:8]}")
        create_topic(bootstrap, topic.name, PARTITIONS)
        create_topic(bootstrap, f"{topic.name}.dead", 1)
        config = producer_config(bootstrap) | {"compression.type": form.compression}
        messages = form.pack(singles)
        with EventProducer(config, topic.name) as producer:
            for at in range(0, len(messages), SLICE):
                producer.send_messages(messages[at : at + SLICE])
        topics.append(topic)
    return topics


def _measure(place: Path, bootstrap: str, topic: Topic, events: int, registry: str) -> Run:
    """What one worker does, from its first batch to its last."""
    chosen: Mapping[str, object] = {}
    if topic.form.format != "json":
        chosen = {"events.format": topic.form.format, "registry.url": registry}
    with started(place, bootstrap, topic.name, reclustering=False, chosen=chosen) as worker:
        return worker.watch(lambda _, now: now.applied >= events, pause_s=LOOK_S, limit_s=OURS_S)


@contextmanager
def _registry() -> Iterator[str]:
    """A registry that has one schema; its URL."""
    body = json.dumps({"schema": json.dumps(SCHEMA), "schemaType": "AVRO"}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
