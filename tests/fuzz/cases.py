"""A case: bytes for one connection, and what may become of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Port = Literal["http", "grpc"]


@dataclass(frozen=True)
class Case:
    """What one hostile client sends."""

    kind: str
    data: bytes
    port: Port = "http"
    whole: bool = False
    """Whether it is a request to its end, so that an answer, or a closed connection, must come at
    once; else what was sent may be awaited by the scorer until it loses patience."""


Make = Callable[[random.Random], bytes]
"""Makes what is sent."""


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Bytes with some of them changed, doubled, moved or lost."""
    spoilt = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(spoilt) + 1)
        size = chance.choice((1, 1, 2, 4, 30))
        match chance.randrange(6):
            case 0:
                spoilt[at : at + size] = chance.randbytes(size)
            case 1:
                del spoilt[at : at + size]
            case 2:
                spoilt[at:at] = spoilt[at : at + size] * chance.choice((1, 2, 50))
            case 3:
                spoilt[at:at] = chance.choice(ODD)
            case 4:
                del spoilt[at:]
            case _:
                if at < len(spoilt):
                    spoilt[at] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


ODD: Final = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"%00",
    b'"',
    b"{",
    b"[" * 100,
    b"-0",
    b"9" * 40,
    b"1e999",
    b"NaN",
    b"\x7f",
    b":",
    b" ",
    b"\xf0\x9f\x92\xa9",
)
"""What parsers stumble over."""
