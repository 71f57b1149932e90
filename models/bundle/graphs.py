"""Graphs: what of an ONNX file is looked at before onnxruntime gets it.

A bundle is data. A graph that names operators of others, or whose weights lie in other files,
would have the runtime look for code or read a path that the file's maker chose, so it is refused,
whatever the runtime would do about it (docs/adr/0029-a-bundle-is-data.md). The file is walked as a
protobuf (onnx.proto3), down to every place in which a domain or a tensor may stand; all else is
stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

DOMAINS: Final = frozenset({"", "ai.onnx"})
"""Of operators: ONNX's own, under both of its names."""

DEPTH: Final = 64
"""Graphs in graphs, and what lies between, at most."""

EXTERNAL: Final = 1
"""TensorProto.DataLocation of a tensor whose values are in another file."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Types of protobuf's fields on the wire; those of groups are long given up."""


class GraphRefused(ValueError):
    """A graph that no service runs; the message says what of it."""


class Message(NamedTuple):
    """What to look for in a message of a kind."""

    inside: dict[int, str] = {}  # noqa: RUF012  # never changed
    """Fields that are messages to walk, by number."""
    domains: tuple[int, ...] = ()
    """Fields that name a domain of operators."""
    external: int | None = None
    """The field that says where a tensor's values are."""
    elsewhere: int | None = None
    """The field that says which other file, if any."""


MESSAGES: Final[dict[str, Message]] = {
    "model": Message({7: "graph", 8: "opset", 20: "training", 25: "function"}),
    "training": Message({1: "graph", 2: "graph"}),
    "graph": Message({1: "node", 5: "tensor", 15: "sparse"}),
    "function": Message({7: "node", 9: "opset", 11: "attribute"}, domains=(10,)),
    "node": Message({5: "attribute"}, domains=(7,)),
    "attribute": Message(
        {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
    ),
    "sparse": Message({1: "tensor", 2: "tensor"}),
    "tensor": Message(external=14, elsewhere=13),
    "opset": Message(domains=(1,)),
}
"""The messages of onnx.proto3 that lead to a domain or a tensor."""


def check_graph(model: bytes) -> None:
    """Refuse a graph that is more than data.

    Raises:
        GraphRefused: it is no protobuf, names operators that are not ONNX's own, or keeps tensors
            in other files.
    """
    _walk(memoryview(model), "model", DEPTH)


def _walk(data: memoryview, kind: str, depth: int) -> None:
    if not depth:
        raise GraphRefused(f"graphs are nested more than {DEPTH} deep")
    message = MESSAGES[kind]
    for number, value in _fields(data):
        if isinstance(value, int):
            # protobuf keeps the lower half of what is too large for an enum.
            if number == message.external and value & 0xFFFFFFFF == EXTERNAL:
                raise GraphRefused("a tensor's values are in another file")
        elif number == message.elsewhere:
            raise GraphRefused("a tensor names another file")
        elif number in message.domains:
            domain = bytes(value).decode("utf-8", "replace")
            if domain not in DOMAINS:
                raise GraphRefused(f"operators of the domain {domain[:64]!r} are not ONNX's own")
        elif (inside := message.inside.get(number)) is not None:
            _walk(value, inside, depth - 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: their numbers, and values as a number or as bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if not number or key > 0xFFFFFFFF:  # of which others might take the lower half
            raise GraphRefused("it is no ONNX file")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in {FIXED64, FIXED32}:
            size = 8 if wire == FIXED64 else 4
        else:
            raise GraphRefused("it is no ONNX file")
        if size > end - at:
            raise GraphRefused("it is no ONNX file, or is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where the next field goes on."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise GraphRefused("it is no ONNX file, or is cut off")
