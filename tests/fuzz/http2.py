"""Hostile clients of HTTP/2, on the HTTP port and on gRPC's, frame by frame."""

from __future__ import annotations

import random
import struct
from functools import cache
from typing import Final

from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from scorer.http.http2 import PREFACE
from tests.fuzz import bodies
from tests.fuzz.bodies import RANK
from tests.fuzz.cases import Case, Port, mutated

Fields = list[tuple[bytes, bytes]]

START: Final = PREFACE + SettingsFrame(0).serialize()
GET: Final[Fields] = [
    (b":method", b"GET"),
    (b":path", b"/v2/health/live"),
    (b":scheme", b"http"),
    (b":authority", b"x"),
]
POST: Final[Fields] = [(b":method", b"POST"), (b":path", b"/v1/rank"), *GET[2:]]


def packed(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


@cache
def _block(fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """A head, as nobody's compressor has it who checks what it is given."""
    encoded: bytes = Encoder().encode(fields, huffman=False)
    return encoded


def block(fields: Fields) -> bytes:
    return _block(tuple(fields))


def head(stream: int, fields: Fields, *flags: str) -> HeadersFrame:
    return HeadersFrame(stream, block(fields), flags=["END_HEADERS", *flags])


def asked(stream: int = 1, fields: Fields = POST, body: bytes = RANK) -> bytes:
    """A request that is whole."""
    frames = [frame(1, 4, stream, block(fields))]
    last = max(0, (len(body) - 1) // FRAME)
    for number in range(last + 1):
        part = body[number * FRAME : (number + 1) * FRAME]
        frames.append(frame(0, number == last, stream, part))
    return b"".join(frames)


FRAME: Final = 16_384
"""Bytes of the largest frame."""


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """A frame, of the length that it has unless told otherwise."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def resets(chance: random.Random) -> bytes:
    """Requests that are taken back at once (CVE-2023-44487)."""
    frames = []
    for number in range(chance.choice((5, 20, 100, 400))):
        stream = 2 * number + 1
        frames += [head(stream, chance.choice((GET, POST))), RstStreamFrame(stream, 8)]
    return packed(*frames)


def order(chance: random.Random) -> bytes:
    """Frames where none may be."""
    return chance.choice(
        (
            frame(0, 0, 0, b"x"),
            packed(DataFrame(1, b"x")),
            packed(head(2, GET, "END_STREAM")),
            frame(1, 5, 0, block(GET)),
            packed(head(5, GET, "END_STREAM"), head(3, GET, "END_STREAM")),
            packed(head(1, GET, "END_STREAM"), head(1, GET, "END_STREAM")),
            packed(head(1, GET, "END_STREAM"), DataFrame(1, b"x" * 1000)),
            packed(ContinuationFrame(1, b"x")),
            packed(HeadersFrame(1, block(GET)), PingFrame(0, b"12345678")),
            packed(HeadersFrame(1, block(GET)), ContinuationFrame(3, b"", flags=["END_HEADERS"])),
            packed(PushPromiseFrame(1, 2, block(GET), flags=["END_HEADERS"])),
            packed(RstStreamFrame(1, 0)),
            packed(WindowUpdateFrame(7, 100)),
            packed(GoAwayFrame(0, 0), head(1, GET, "END_STREAM")),
            packed(GoAwayFrame(0, 2**31 - 1, 11)),
            packed(SettingsFrame(0, flags=["ACK"])) * 50,
            packed(head(1, POST), head(1, [(b"trailer", b"x")], "END_STREAM")),
            packed(head(1, POST), head(1, [(b":status", b"200")], "END_STREAM")),
            PREFACE,
        )
    )


def heads(chance: random.Random) -> bytes:
    """Heads that are huge, or make the compressor's table lie."""
    match chance.randrange(6):
        case 0:
            return packed(
                head(1, [*GET, (b"x", b"y" * chance.choice((1000, 16_000)))], "END_STREAM")
            )
        case 1:
            parts = [
                ContinuationFrame(1, b"\0\x01x" + b"\x7f\x01" + b"y" * 128)
                for _ in range(chance.choice((5, 600)))
            ]
            return packed(HeadersFrame(1, block(GET), flags=["END_STREAM"]), *parts)
        case 2:
            many = [*GET, (b"x", b"y" * 4000)] + [(b"x", b"y" * 4000)] * chance.choice((10, 1000))
            return packed(
                HeadersFrame(
                    1, Encoder().encode(many)[:16_000], flags=["END_STREAM", "END_HEADERS"]
                )
            )
        case 3:
            return packed(
                HeadersFrame(
                    1, chance.randbytes(chance.choice((1, 50, 5000))), flags=["END_HEADERS"]
                )
            )
        case 4:
            empty = [ContinuationFrame(1, b"") for _ in range(2000)]
            return packed(HeadersFrame(1, b""), *empty)
        case _:
            indexes = b"\xff" * chance.choice((1, 5, 200)) + b"\x7f"
            return packed(HeadersFrame(1, indexes, flags=["END_HEADERS", "END_STREAM"]))


def pseudo(chance: random.Random) -> bytes:
    """Fields that no request may have, or lacks."""
    fields = list(chance.choice((GET, POST)))
    odd: Fields = [
        (b":path", b""),
        (b":path", b"no slash"),
        (b":method", b""),
        (b":method", b"\xff"),
        (b":scheme", b"ftp"),
        (b":authority", b"\0"),
        (b":nothing", b"x"),
        (b"Upper", b"x"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"gzip"),
        (b"content-length", b"5"),
        (b"content-length", b"-1"),
        (b"content-length", b"9" * 40),
        (b"expect", b"100-continue"),
        (b"x", b"a\r\nb"),
        (b"", b"x"),
        (b"cookie", b"a" * 5000),
        (b"host", b"y"),
        (b"x-request-timeout-ms", b"\xb2"),
        (b"content-type", b"\xff"),
    ]
    match chance.randrange(4):
        case 0:
            del fields[chance.randrange(len(fields))]
        case 1:
            fields[chance.randrange(len(fields))] = chance.choice(odd)
        case 2:
            fields += chance.choices(odd, k=chance.choice((1, 3)))
        case _:
            chance.shuffle(fields)
            fields.insert(0, chance.choice(odd))
    return asked(1, fields)


def windows(chance: random.Random) -> bytes:
    """Windows of no size, of too much, and settings that change all the time."""
    kind = SettingsFrame.INITIAL_WINDOW_SIZE
    match chance.randrange(7):
        case 0:
            return packed(WindowUpdateFrame(0, 2**31 - 1)) * 2
        case 1:
            return frame(8, 0, 0, bytes(4))
        case 2:
            return frame(4, 0, 0, struct.pack(">HI", kind, 2**31))
        case 3:
            return packed(SettingsFrame(0, {kind: 0})) + asked()
        case 4:
            changing = [SettingsFrame(0, {kind: place % 2 * 65_535}) for place in range(300)]
            return packed(*changing) + asked()
        case 5:
            return (
                frame(4, 0, 0, struct.pack(">HI", 5, chance.choice((0, 16_383, 2**24)))) + asked()
            )
        case _:
            return packed(PingFrame(0, b"12345678")) * chance.choice((10, 2000))


def lengths(chance: random.Random) -> bytes:
    """Frames whose lengths lie, or of no kind that there is."""
    match chance.randrange(6):
        case 0:
            return frame(
                chance.randrange(12),
                chance.randrange(256),
                chance.choice((0, 1, 2**31 - 1, 2**32 - 1)),
                chance.randbytes(chance.choice((0, 5, 8, 100))),
            )
        case 1:
            return frame(0, 1, 1, b"x" * 10, chance.choice((0, 5, 1000, 2**24 - 1)))
        case 2:
            return packed(head(1, POST)) + frame(0, 8, 1, bytes([255]) + b"x" * 10)
        case 3:
            return packed(head(1, POST)) + frame(0, 0, 1, b"x" * 20_000)
        case 4:
            return packed(head(1, POST)) + frame(0, 8, 1, bytes([200]) + b"x" + bytes(200)) * 100
        case _:
            return packed(PriorityFrame(1, depends_on=1, stream_weight=5)) + asked()


def good_and_bad(chance: random.Random) -> bytes:
    """Requests whose frames are right, and whose bodies are not."""
    parts = []
    for number in range(chance.choice((1, 1, 1, 5, 5, 150))):
        body = chance.choice((RANK, b"{", b"", bodies.rank(chance)[:60_000]))
        parts.append(asked(2 * number + 1, chance.choice((POST, GET)), body))
    return b"".join(parts)


def spoilt(chance: random.Random) -> bytes:
    """Good frames, mutated anywhere."""
    return mutated(chance, asked() + asked(3))


FRAMES: Final = (resets, order, heads, pseudo, windows, lengths, good_and_bad, spoilt)


def frames(chance: random.Random, port: Port) -> Case:
    """A connection of HTTP/2 that breaks a rule."""
    make = chance.choice(FRAMES)
    start = START if chance.random() < 0.95 else mutated(chance, START)
    return Case(f"{port} frames: {make.__name__}", start + make(chance), port)


def on_http(chance: random.Random) -> Case:
    return frames(chance, "http")


def on_grpc(chance: random.Random) -> Case:
    return frames(chance, "grpc")


KINDS: Final = (on_http, on_http, on_http, on_grpc)
