"""Hostile clients of gRPC: messages that lie, in frames that are right."""

from __future__ import annotations

import gzip
import random
import struct
from functools import cache
from typing import Final

from hyperframe.frame import RstStreamFrame

from scorer.grpc import open_inference_pb2 as pb
from tests.fuzz import http1
from tests.fuzz.cases import Case, mutated
from tests.fuzz.http2 import START, Fields, asked, packed

SERVICE: Final = b"/inference.GRPCInferenceService/"
METHODS: Final = (
    b"ServerLive",
    b"ServerReady",
    b"ModelReady",
    b"ServerMetadata",
    b"ModelMetadata",
    b"ModelConfig",
    b"ModelStatistics",
    b"RepositoryIndex",
)


def call(path: bytes = SERVICE + b"ModelInfer", *more: tuple[bytes, bytes]) -> Fields:
    return [
        (b":method", b"POST"),
        (b":path", path),
        (b":scheme", b"http"),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]


def message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message behind its prefix."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


@cache
def good() -> bytes:
    """A request for three items."""
    request = pb.ModelInferRequest(model_name="tiny")
    for name, values in (("user", [b"u"]), ("candidates", [b"item-1", b"item-2", b"item-3"])):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
        tensor.contents.bytes_contents.extend(values)
    encoded: bytes = request.SerializeToString()
    return encoded


def prefixes(chance: random.Random) -> bytes:
    """Messages whose prefixes lie."""
    size = len(good())
    lie = chance.choice((0, size - 5, size + 5, 2**31, 2**32 - 1, 10**8))
    flag = chance.choice((0, 0, 1, 2, 255))
    coding = chance.choice(((), ((b"grpc-encoding", b"gzip"),), ((b"grpc-encoding", b"nothing"),)))
    data = message(good(), flag=flag, length=lie if chance.random() < 0.5 else None)
    return asked(1, call(SERVICE + b"ModelInfer", *coding), data)


@cache
def unfolding_to(size: int) -> bytes:
    return gzip.compress(good() + bytes(size))


def bombs(chance: random.Random) -> bytes:
    """Messages that are larger than they look."""
    many = unfolding_to(chance.choice((1000, 20_000_000)))
    more = (b"grpc-encoding", chance.choice((b"gzip", b"deflate")))
    return asked(1, call(SERVICE + b"ModelInfer", more), message(many, flag=1)[:60_000])


def protobuf(chance: random.Random) -> bytes:
    """What is no message, or not of this kind."""
    data = chance.choice(
        (
            mutated(chance, good()),
            chance.randbytes(chance.choice((1, 20, 5000))),
            b"\x0a\xff\xff\xff\xff\x0f",
            b"\x0a" * 1000,
            b"\x2b" * 2000,
        )
    )
    path = SERVICE + chance.choice((b"ModelInfer", b"ModelInfer", *METHODS))
    return asked(1, call(path), message(data))


def tensors(chance: random.Random) -> bytes:
    """Tensors whose shapes and sizes lie."""
    request = pb.ModelInferRequest.FromString(good())
    wrong = chance.choice(request.inputs)
    match chance.randrange(7):
        case 0:
            del wrong.shape[:]
            wrong.shape.extend(
                chance.choice((0, 1, 3, -1, 10**9, 2**62, 2**63 - 1))
                for _ in range(chance.choice((0, 1, 2, 3, 500)))
            )
        case 1:
            wrong.datatype = chance.choice(("UINT64", "FP32", "", "é" * 100))
        case 2:
            wrong.contents.bytes_contents.extend([b"\xff\xfe", b"", b"x" * 300])
        case 3:
            request.raw_input_contents.extend([b"", b"\xff" * chance.choice((4, 100))])
        case 4:
            for tensor in request.inputs:
                tensor.ClearField("contents")
            lengths = (0, 1, 5, 2**31, 2**32 - 1)
            request.raw_input_contents.append(struct.pack("<I", chance.choice(lengths)) + b"u")
            request.raw_input_contents.append(
                struct.pack("<I", chance.choice(lengths)) + b"item-1" * 3
            )
        case 5:
            request.model_version = chance.choice(("0", "x" * 10_000, "é"))
            request.parameters["unknown_items"].int64_param = 5
        case _:
            for _ in range(500):
                request.inputs.add().CopyFrom(wrong)
    return asked(1, call(), message(request.SerializeToString()))


def calls(chance: random.Random) -> bytes:
    """Methods that there are not, and metadata that lies."""
    path = chance.choice(
        (
            b"/",
            b"",
            b"ModelInfer",
            SERVICE,
            SERVICE + b"Nothing",
            b"/no.Service/ModelInfer",
            b"/grpc.health.v1.Health/Check",
            b"/grpc.health.v1.Health/Watch",
            b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            SERVICE + b"ModelInfer",
        )
    )
    more = chance.choice(
        (
            (
                b"grpc-timeout",
                chance.choice((b"0S", b"-1m", b"1x", b"99999999H", b"", b"1n", b"9" * 50 + b"S")),
            ),
            (b"grpc-accept-encoding", b"x" * 5000),
            (b"priority", b"u=\xff"),
            (b"x-client-id", b"\xff\xfe"),
            (b"x-bin", b"!"),
            (b"grpc-status", b"0"),
            (b"x", b"y" * chance.choice((100, 16_000))),
        )
    )
    fields = call(path, more)
    if chance.random() < 0.3:
        del fields[chance.randrange(len(fields))]
    data = chance.choice((message(good()), b"", message(good()) * 3, message(b"")))
    return asked(1, fields, data)


def many(chance: random.Random) -> bytes:
    """Calls at once, some of which are taken back."""
    parts = []
    for number in range(chance.choice((5, 5, 20, 300))):
        stream = 2 * number + 1
        parts.append(asked(stream, call(), message(good())))
        if chance.random() < 0.5:
            parts.append(packed(RstStreamFrame(stream, 8)))
    return b"".join(parts)


def other_protocols(chance: random.Random) -> bytes:
    """What is no HTTP/2."""
    return chance.choice((http1.garbage, http1.lengths, http1.heads))(chance).data


def spoilt(chance: random.Random) -> bytes:
    """A good call, mutated anywhere."""
    return mutated(chance, asked(1, call(), message(good())))


CALLS: Final = (prefixes, bombs, protobuf, tensors, tensors, calls, many, spoilt)


def of_calls(chance: random.Random) -> Case:
    make = chance.choice(CALLS)
    return Case(f"grpc {make.__name__}", START + make(chance), "grpc")


def of_others(chance: random.Random) -> Case:
    return Case("grpc other protocols", other_protocols(chance), "grpc")


KINDS: Final = (of_calls, of_calls, of_calls, of_calls, of_calls, of_calls, of_others)
