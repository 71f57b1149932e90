"""Bodies of ranking requests that lie, or are spoilt."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from functools import cache
from typing import Any, Final

from tests.fuzz.cases import mutated

RANK: Final = b'{"user": "u", "candidates": ["item-1", "item-2", "item-3"], "time": 1700000000000}'
"""A good one."""

NUMBERS: Final = (
    "0",
    "-1",
    "-0",
    "0.5",
    "1e3",
    "1e400",
    "-1e400",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "9" * 5000,
    "NaN",
    "Infinity",
    "-Infinity",
    "01",
    "0x10",
    "1_000",
    "null",
    "true",
    '"1"',
    "[]",
    "{}",
)
SIZES: Final[tuple[Any, ...]] = (
    0,
    1,
    3,
    -1,
    10**9,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    10**40,
    1.5,
    "3",
    None,
    True,
    [3],
)
DEEP: Final = 100_000


def rank(chance: random.Random) -> bytes:
    """For /v1/rank."""
    number = chance.choice(NUMBERS).encode()
    match chance.randrange(12):
        case 0:
            return mutated(chance, RANK)
        case 1:
            opened = chance.choice((b"[", b'{"a":', b'{"user":', b'[{"b":['))
            return opened * chance.choice((10, 1000, DEEP))
        case 2:
            depth = chance.choice((500, 2000, DEEP))
            return b'{"user": "u", "candidates": ' + b"[" * depth + b"]" * depth + b"}"
        case 3:
            name = chance.choice((b"top_k", b"time", b"explain", b"user", b"candidates"))
            return b'{"user": "u", "candidates": ["a"], "%b": %b}' % (name, number)
        case 4:
            return b'{"user": "%b", "candidates": ["item-1"]}' % chance.choice(
                (
                    b"\xff\xfe",
                    b"\xc0\x80",
                    b"\\ud800",
                    b"\\u0000",
                    b"\0",
                    b"u" * 100_000,
                    b"\xed\xa0\x80",
                )
            )
        case 5:
            wrong: Any = chance.choice(("", "\ud800", "x" * 300, "\0", 5, None, [], {}))
            candidates = ["item-1"] * chance.choice((0, 1, 50)) + [wrong]
            return json.dumps({"user": "u", "candidates": candidates}).encode()
        case 6:
            return json.dumps(
                {"user": "u", "candidates": ["a"] * chance.choice((0, 9_999, 10_001))}
            ).encode()
        case 7:
            return chance.choice(
                (
                    b"",
                    b" ",
                    b"\xef\xbb\xbf" + RANK,
                    RANK + RANK,
                    b"null",
                    b"[]",
                    b'""',
                    RANK.decode().encode("utf-16"),
                )
            )
        case 8:
            fields = b", ".join(b'"field-%d": %d' % (place, place) for place in range(2000))
            return b'{"user": "u", "candidates": ["a"], ' + fields + b"}"
        case 9:
            return b'{"user": "u", "user": "v", "candidates": ["a"], "candidates": [%b]}' % number
        case 10:
            return chance.randbytes(chance.choice((1, 100, 10_000)))
        case _:
            return json.dumps(
                {
                    "user": "u",
                    "candidates": ["a", "b"],
                    "unknown_items": chance.choice(("refuse", "x" * 10_000, 5)),
                    "explain": chance.choice((51, -1, "yes")),
                }
            ).encode()


def infer(chance: random.Random) -> tuple[bytes, bytes | None]:
    """For /infer, and the value of Inference-Header-Content-Length; None: it is not sent."""
    if chance.random() < 0.5:
        head, blobs = _inference(chance, raw=False)
        return (mutated(chance, head) if chance.random() < 0.3 else head), None
    head, blobs = _inference(chance, raw=True)
    length: bytes | None = b"%d" % len(head)
    if chance.random() < 0.4:
        length = chance.choice(
            (
                b"0",
                b"-1",
                b"+5",
                b"1e3",
                b"9" * 30,
                b"%d" % (len(head) + 10**9),
                b"",
                b"\xb2",
                b"%d" % max(0, len(head) - 3),
                None,
            )
        )
    return head + blobs, length


def _inference(chance: random.Random, *, raw: bool) -> tuple[bytes, bytes]:
    """JSON and bytes of an inference of which something is a lie."""
    tensors: list[dict[str, Any]] = []
    blobs = b""
    for name, values in (("user", ["u"]), ("candidates", ["item-1", "item-2", "item-3"])):
        tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(values)]}
        if raw:
            blob = _blob(chance, values)
            blobs += blob
            tensor["parameters"] = {"binary_data_size": len(blob)}
        else:
            tensor["data"] = values
        tensors.append(tensor)
    message: dict[str, Any] = {"inputs": tensors}
    if chance.random() < 0.5:
        chance.choice(tensors).update(_tensor_lie(chance))
    else:
        message.update(_message_lie(chance, tensors))
    return json.dumps(message).encode(), blobs


def _tensor_lie(chance: random.Random) -> dict[str, Any]:
    several = [chance.choice(SIZES) for _ in range(chance.choice((0, 1, 1, 2, 2, 3)))]
    data: tuple[Any, ...] = (
        [],
        [[]],
        [[["a"]]],
        [1, "a"],
        [{"b64": "!"}],
        {},
        1,
        "a",
        [None],
        [1e300],
    )
    lies: tuple[dict[str, Any], ...] = (
        {"shape": several},
        {"shape": [1] * chance.choice((3, 1000))},
        {"datatype": chance.choice(("UINT64", "INT64", "FP32", "BOOL", "", "X" * 10_000))},
        {"parameters": {"binary_data_size": chance.choice(SIZES)}},
        {"data": chance.choice(data)},
    )
    return chance.choice(lies)


def _message_lie(chance: random.Random, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    moment: dict[str, Any] = {
        "name": "time",
        "datatype": "INT64",
        "shape": [1],
        "data": [chance.choice(SIZES)],
    }
    wish: dict[str, Any] = {
        "name": chance.choice(("ctr", "no", "")),
        "parameters": chance.choice(({}, None)),
    }
    lies: tuple[dict[str, Any], ...] = (
        {"inputs": tensors * chance.choice((2, 500))},
        {"inputs": [*tensors, moment]},
        {"outputs": [wish] * chance.choice((1, 1000))},
        {"parameters": {"unknown_items": chance.choice((1, "x", None, [], {}))}},
        {"parameters": {"binary_data_output": chance.choice((True, "yes", 1))}},
        {"id": chance.choice(("\ud800", "x" * 100_000, 5, None, "\0"))},
    )
    return chance.choice(lies)


def _blob(chance: random.Random, values: list[str]) -> bytes:
    """Strings behind their lengths, one of which may be a lie."""
    liar = chance.randrange(2 * len(values))
    parts = []
    for place, value in enumerate(values):
        size = len(value)
        if place == liar:
            size = chance.choice((0, size - 1, size + 1, 2**31 - 1, 2**31, 2**32 - 1, 10**9))
        parts.append(struct.pack("<I", size) + value.encode())
    return b"".join(parts)[: chance.choice((None, None, None, -1, -4))]


BOMB: Final = 200 << 20
"""Bytes of a bomb, unfolded."""


@cache
def bomb(coding: str) -> bytes:
    """Many zeros, compressed; as few bytes as there can be."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(BOMB >> 20)) + packer.flush()


@cache
def twice() -> bytes:
    return gzip.compress(bomb("gzip"))


def compressed(chance: random.Random) -> tuple[bytes, bytes]:
    """A body and its Content-Encoding."""
    match chance.randrange(8):
        case 0:
            return bomb("gzip"), b"gzip"
        case 1:
            return bomb("deflate"), b"deflate"
        case 2:
            return twice(), b"gzip, gzip"
        case 3:
            return mutated(chance, gzip.compress(RANK)), b"gzip"
        case 4:
            return gzip.compress(RANK)[: chance.randrange(20)], b"gzip"
        case 5:
            return gzip.compress(RANK) + chance.randbytes(20), chance.choice(
                (b"gzip", b"GZIP", b"x-gzip")
            )
        case 6:
            return RANK, chance.choice(
                (
                    b"br",
                    b"zstd",
                    b"deflate",
                    b"gzip",
                    b"identity, gzip",
                    b"nothing",
                    b", ".join([b"gzip"] * 500),
                )
            )
        case _:
            return gzip.compress(rank(chance)), b"gzip"
