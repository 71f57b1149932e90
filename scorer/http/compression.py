"""Bodies that come compressed, and answers that go out so, with gzip, deflate or zstd.

What comes out of a body is bounded as a body is, so that a small one which unfolds without end
takes no more memory than a large one. The work is done beside the event loop and the thread that
ranks.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

import cramjam
import numpy as np
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.errors import RequestError
from scorer.http.body import beginning_with
from scorer.limits import SHOWN_CHARS, Refused

GZIP: Final = 16 + zlib.MAX_WBITS
ZLIB: Final = zlib.MAX_WBITS
BARE: Final = -zlib.MAX_WBITS
"""Deflate's data without zlib's frame around it, which some clients send for "deflate"."""

FASTEST: Final = 1
"""The level at which answers are compressed: the next ones take longer than they save."""


class Compression:
    """ASGI middleware: the application sees bodies as if nobody had compressed them.

    Raises `RequestError` for a body that is not what its Content-Encoding says, and `Refused`: 413
    for one that unfolds beyond ``max_bytes``, 415 for a coding that is not known.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, least_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._least_bytes = least_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        coding = headers.get("content-encoding", "").strip().lower()
        if coding not in {"", "identity"}:
            receive = await self._unfolding(coding, receive)
        answers_as = accepted(headers.get("accept-encoding", ""))
        if answers_as is not None:
            send = self._folding(answers_as, send)
        await self._app(scope, receive, send)

    async def _unfolding(self, coding: str, receive: Receive) -> Receive:
        unfold = UNFOLD.get(coding)
        if unfold is None:
            raise Refused(
                415,
                "content_type",
                "Content-Encoding",
                f"is {coding[:SHOWN_CHARS]}, expected {', '.join(FOLD)} or none",
            )
        chunks = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                break
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        body = await asyncio.to_thread(unfold, b"".join(chunks), self._max_bytes)
        return beginning_with(body, receive)

    def _folding(self, coding: str, send: Send) -> Send:
        start: Message | None = None

        async def send_folded(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                whole = not message.get("more_body", False)
                body = message.get("body", b"")
                headers = MutableHeaders(raw=start["headers"])
                headers.add_vary_header("Accept-Encoding")
                if whole and len(body) >= self._least_bytes:
                    folded = await asyncio.to_thread(FOLD[coding], body)
                    headers["content-encoding"] = coding
                    headers["content-length"] = str(len(folded))
                    message = {**message, "body": folded}
                await send(start)
                start = None
            await send(message)

        return send_folded


def accepted(header: str) -> str | None:
    """The coding for an answer to who sends this Accept-Encoding; None: none.

    >>> accepted("gzip, deflate, br")
    'gzip'
    >>> accepted("zstd;q=0.5, gzip;q=0.9")
    'gzip'
    >>> accepted("identity, *;q=0")
    """
    if not header:
        return None
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, parameter = part.partition(";")
        key, _, value = parameter.partition("=")
        weights[name.strip()] = _weight(value.strip()) if key.strip() == "q" else 1.0
    others = weights.get("*", 0.0)
    best = max(FOLD, key=lambda coding: weights.get(coding, others))  # of equals the first
    return best if weights.get(best, others) > 0 else None


def _weight(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _inflate(coding: str, body: bytes, max_bytes: int, frame: int) -> bytes:
    """The content of one gzip or zlib stream, or of several behind one another, as gzip allows."""
    parts: list[bytes] = []
    size = 0
    while body:
        stream = zlib.decompressobj(frame)
        try:
            part = stream.decompress(body, max_bytes - size + 1)
        except zlib.error:
            raise _not(coding) from None
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not stream.eof or (stream.unused_data and frame != GZIP):
            raise _not(coding)
        parts.append(part)
        body = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _ungzip(body: bytes, max_bytes: int) -> bytes:
    return _inflate("gzip", body, max_bytes, GZIP)


def _undeflate(body: bytes, max_bytes: int) -> bytes:
    # A zlib frame begins with the method, 8, and a checksum of its two bytes.
    framed = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _inflate("deflate", body, max_bytes, ZLIB if framed else BARE)


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    # Memory that nobody has written to costs nothing, so room for the largest is no waste.
    room = np.empty(max_bytes + 1, np.uint8)
    try:
        size = cramjam.zstd.decompress_into(body, room.data)
    except cramjam.DecompressionError as error:
        if "write whole buffer" in str(error):
            raise _too_large(max_bytes) from None
        raise _not("zstd") from None
    if size > max_bytes:
        raise _too_large(max_bytes)
    return room[:size].tobytes()


def _not(coding: str) -> RequestError:
    return RequestError("body", f"is not {coding}, which its Content-Encoding says, or is cut off")


def _too_large(max_bytes: int) -> Refused:
    return Refused(
        413, "body_too_large", "body", f"is larger than {max_bytes} bytes when decompressed"
    )


def _gzip(body: bytes) -> bytes:
    stream = zlib.compressobj(FASTEST, wbits=GZIP)
    return stream.compress(body) + stream.flush()


def _deflate(body: bytes) -> bytes:
    return zlib.compress(body, FASTEST)


def _zstd(body: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(body, FASTEST))


UNFOLD: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "zstd": _unzstd,
    "gzip": _ungzip,
    "x-gzip": _ungzip,
    "deflate": _undeflate,
}
FOLD: Final[dict[str, Callable[[bytes], bytes]]] = {
    "zstd": _zstd,
    "gzip": _gzip,
    "deflate": _deflate,
}
"""By coding, the one that is preferred first."""
