"""What producers send: records in the bytes of confluent-kafka's own serializers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka.schema_registry import (
    SchemaRegistryClient,
    header_schema_id_serializer,
    record_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.schema_registry.schema_registry_client import Schema, SchemaReference
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from infra.schema_registry import SchemaRegistry
from infra.settings import RegistrySettings
from tests.schema_registry import RegistryDouble

TOPIC = "clicks"
SAMPLES = Path(__file__).parents[4] / "docs" / "formats" / "samples"

Sent = tuple[bytes, list[tuple[str, bytes | None]]]
"""A record's value and headers."""


class Producer:
    """A producer of records whose schemas are registered."""

    def __init__(self, client: SchemaRegistryClient) -> None:
        self.client = client

    def avro(
        self,
        schema: Mapping[str, Any] | list[Any],
        event: Any,
        references: Mapping[str, str] | None = None,
        **conf: Any,
    ) -> bytes:
        """An event in Avro; ``references`` are names of types to the subjects that have them."""
        referred = [
            SchemaReference(name, subject, 1) for name, subject in (references or {}).items()
        ]
        made = Schema(json.dumps(schema), "AVRO", referred)
        return self._sent(AvroSerializer(self.client, made, conf=conf), event)[0]

    def avro_in_header(self, schema: Mapping[str, Any], event: Any) -> Sent:
        """The same, the schema named in a header."""
        conf = {"schema.id.serializer": header_schema_id_serializer}
        return self._sent(AvroSerializer(self.client, json.dumps(schema), conf=conf), event)

    def json(self, schema: Mapping[str, Any], event: Any) -> bytes:
        """An event in JSON by a schema."""
        return self._sent(JSONSerializer(json.dumps(schema), self.client), event)[0]

    def protobuf(self, message: Any, *, in_header: bool = False) -> Sent:
        """A message."""
        conf: dict[str, Any] = {"use.deprecated.format": False}
        if in_header:
            conf["schema.id.serializer"] = header_schema_id_serializer
        return self._sent(ProtobufSerializer(type(message), self.client, conf), message)

    def register(self, subject: str, schema: Any, kind: str = "AVRO") -> None:
        """Register a schema that others refer to."""
        self.client.register_schema(subject, Schema(json.dumps(schema), kind))

    @staticmethod
    def _sent(serializer: Any, event: Any) -> Sent:
        headers: list[tuple[str, bytes | None]] = []
        context = SerializationContext(TOPIC, MessageField.VALUE, headers)
        return serializer(event, context), headers


@contextmanager
def producing(registry: RegistryDouble) -> Iterator[Producer]:
    """A producer that registers at a registry."""
    with SchemaRegistryClient({"url": registry.url}) as client:
        yield Producer(client)


def by_record() -> dict[str, Any]:
    """What has a serializer register a schema under its record's name: several types in a topic."""
    return {"subject.name.strategy": record_subject_name_strategy}


def asked(registry: RegistryDouble) -> SchemaRegistry:
    """What a reader asks."""
    return SchemaRegistry(RegistrySettings(url=registry.url))


def messages(directory: Path, **files: str) -> dict[str, Any]:
    """The classes of messages by their full names, of files of .proto by their names."""
    pool, found = descriptor_pool.DescriptorPool(), _compiled(directory, files)
    for file in found.file:
        pool.Add(file)
    return {
        name: kind
        for file in found.file
        for name, kind in message_factory.GetMessageClassesForFiles([file.name], pool).items()
    }


def register_sample(name: str, registry: RegistryDouble, directory: Path) -> None:
    """Register the schema that lies beside the sample of a format, if one does."""
    kinds = {".avsc": "AVRO", ".json": "JSON", ".proto": "PROTOBUF"}
    for suffix, kind in kinds.items():
        if (file := SAMPLES / f"{name}{suffix}").is_file():
            text = file.read_text()
            if kind == "PROTOBUF":
                *_, found = _compiled(directory, {name: text}).file
                text = base64.b64encode(found.SerializeToString()).decode()
            registry.register("shop.events-value", {"schema": text, "schemaType": kind})


def _compiled(directory: Path, files: Mapping[str, str]) -> descriptor_pb2.FileDescriptorSet:
    from grpc_tools import protoc

    for name, text in files.items():
        (directory / f"{name}.proto").write_text(text)
    out = directory / "descriptors"
    well_known = Path(protoc.__file__).parent / "_proto"
    names = [f"{name}.proto" for name in files]
    arguments = [f"-I{directory}", f"-I{well_known}", "--include_imports"]
    assert protoc.main(["protoc", *arguments, f"--descriptor_set_out={out}", *names]) == 0
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
