"""Hostile clients of HTTP/1.1."""

from __future__ import annotations

import random
from typing import Final

from tests.fuzz import bodies
from tests.fuzz.bodies import RANK
from tests.fuzz.cases import ODD, Case, mutated

PATHS: Final = (
    b"/v1/rank",
    b"/v2/models/tiny/infer",
    b"/v2/models/tiny/versions/0/infer",
    b"/v2/models/tiny",
    b"/v2/models/%ff%00%2e%2e/ready",
    b"/v2/models/" + b"x" * 5000,
    b"/v2/health/ready",
    b"/v2/repository/index",
    b"/v2/models/stats",
    b"/metrics",
    b"/docs",
    b"/openapi.json",
    b"/problems/overload",
    b"/problems/%0d%0aX: y",
    b"/v1/rank/../../etc/passwd",
    b"//v1/rank",
    b"http://elsewhere/v1/rank",
    b"*",
    b"/%",
    b"/?" + b"&" * 3000,
    b"",
)
METHODS: Final = (
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"M-SEARCH",
    b"PRI",
    b"G\0T",
    b"get",
)


def request(
    body: bytes = RANK,
    path: bytes = b"/v1/rank",
    method: bytes = b"POST",
    *headers: bytes,
    length: bytes | None = None,
) -> bytes:
    """A request; of the length that its body has, unless told otherwise."""
    told = b"%d" % len(body) if length is None else length
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: " + told, *headers]
    return b"\r\n".join([*lines, b"", body])


def spoilt(chance: random.Random) -> Case:
    """A good request, mutated anywhere."""
    good = request(RANK, b"/v1/rank", b"POST", b"Content-Type: application/json")
    return Case("http1 mutated", mutated(chance, good * chance.choice((1, 1, 3))))


def lengths(chance: random.Random) -> Case:
    """Content-Length and Transfer-Encoding that lie."""
    size = len(RANK)
    lie = chance.choice(
        (
            b"0",
            b"%d" % (size - 5),
            b"%d" % (size + 5),
            b"-1",
            b"+5",
            b"0x10",
            b"9" * 30,
            b"5, 5",
            b"",
            b" ",
            b"1e3",
            b"18446744073709551616",
        )
    )
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (size, RANK)
    match chance.randrange(7):
        case 0:
            data = request(length=lie)
        case 1:
            data = request(RANK, b"/v1/rank", b"POST", b"Content-Length: " + lie)
        case 2:
            data = request(chunked, b"/v1/rank", b"POST", b"Transfer-Encoding: chunked", length=lie)
        case 3:
            codings = (
                b"chunked, chunked",
                b"gzip, chunked",
                b"identity",
                b"xchunked",
                b"chunked\r\n ,x",
                b"Chunked\0",
            )
            data = request(
                chunked, b"/v1/rank", b"POST", b"Transfer-Encoding: " + chance.choice(codings)
            )
        case 4:
            sizes = (
                b"ffffffffffffffff",
                b"-1",
                b"+5",
                b"0x5",
                b"5;" + b"x" * 70_000,
                b"",
                b"zz",
                b"100000000",
            )
            rest = chance.choice(sizes) + b"\r\n" + RANK + b"\r\n0\r\n\r\n"
            data = _chunked(rest)
        case 5:
            data = _chunked(mutated(chance, chunked))
        case _:
            trailers = b"".join(b"t%d: x\r\n" % place for place in range(chance.choice((1, 5000))))
            data = _chunked(chunked[:-2] + trailers + b"\r\n")
    return Case("http1 lengths", data)


def _chunked(body: bytes) -> bytes:
    return b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def hostile_json(chance: random.Random) -> Case:
    """JSON that no parser likes."""
    paths = (b"/v2/repository/index", b"/v1/outcomes", *[b"/v1/rank"] * 8)
    path = paths[int(10 * chance.random())]
    return Case("json", request(bodies.rank(chance), path), whole=True)


def tensors(chance: random.Random) -> Case:
    """Tensors whose shapes and sizes lie."""
    body, length = bodies.infer(chance)
    headers = [] if length is None else [b"Inference-Header-Content-Length: " + length]
    return Case("tensors", request(body, b"/v2/models/tiny/infer", b"POST", *headers), whole=True)


def compressed(chance: random.Random) -> Case:
    """Bombs, and what does not unfold."""
    body, coding = bodies.compressed(chance)
    path = chance.choice((b"/v1/rank", b"/v2/models/tiny/infer"))
    return Case(
        "compressed", request(body, path, b"POST", b"Content-Encoding: " + coding), whole=True
    )


def upgrades(chance: random.Random) -> Case:
    """Offers of other protocols, with bodies."""
    offer = chance.choice(
        (
            (
                b"Connection: Upgrade, HTTP2-Settings",
                b"Upgrade: h2c",
                b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
            ),
            (
                b"Connection: Upgrade",
                b"Upgrade: websocket",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ==",
                b"Sec-WebSocket-Version: 13",
            ),
            (b"Connection: upgrade, close", b"Upgrade: TLS/1.0, HTTP/1.1"),
            (b"Connection: Upgrade", b"Upgrade: h2c", b"Transfer-Encoding: chunked"),
            (b"Connection: Upgrade, Upgrade, Upgrade", b"Upgrade: " + b"x" * 5000),
            (b"Upgrade: h2c",),
        )
    )
    method = chance.choice((b"GET", b"POST", b"CONNECT"))
    data = request(RANK, b"/v1/rank", method, *offer)
    return Case("upgrades", mutated(chance, data) if chance.random() < 0.3 else data)


def pipelined(chance: random.Random) -> Case:
    """Good and bad requests in one go."""
    several = [
        chance.choice(
            (
                request(),
                request(b"{"),
                request(b"", b"/v2/health/live", b"GET"),
                hostile_json(chance).data,
            )
        )
        for _ in range(chance.choice((2, 2, 5, 10, 100)))
    ]
    if chance.random() < 0.3:
        several.insert(chance.randrange(len(several)), mutated(chance, request()))
    return Case("pipelined", b"".join(several))


def garbage(chance: random.Random) -> Case:
    """What is no HTTP."""
    hello = bytes.fromhex("16030100c8010000c40303") + chance.randbytes(190)
    data = chance.choice(
        (
            chance.randbytes(chance.choice((1, 30, 5000))),
            hello,
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\r\n" * 500,
            b"\0" * 1000,
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + request(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            b"GET / HTTP/0.9\r\n\r\n",
            b"GET / HTTP/3.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
        )
    )
    return Case("garbage", data)


def heads(chance: random.Random) -> Case:
    """Heads that are huge, or odd."""
    match chance.randrange(7):
        case 0:
            data = request(
                RANK, b"/v1/rank", b"POST", b"X: " + b"x" * chance.choice((10_000, 70_000, 300_000))
            )
        case 1:
            many = [b"x%d: y" % place for place in range(chance.choice((100, 5000)))]
            data = request(RANK, b"/v1/rank", b"POST", *many)
        case 2:
            odd = chance.choice(ODD)
            data = request(RANK, b"/v1/rank", b"POST", b"X-Client-Id: " + odd, b"X" + odd + b": y")
        case 3:
            value = chance.choice(
                (b"-1", b"0", b"9" * 30, b"x", b"1e9", b"\xff", b"\xb2", b"", b"99999999S")
            )
            name = chance.choice(
                (
                    b"x-request-timeout-ms",
                    b"x-envoy-expected-rq-timeout-ms",
                    b"grpc-timeout",
                    b"priority",
                    b"x-request-id",
                    b"traceparent",
                    b"expect",
                    b"content-type",
                    b"accept-encoding",
                    b"authorization",
                    b"x-client-id",
                )
            )
            data = request(
                RANK, b"/v1/rank", b"POST", *[name + b": " + value] * chance.choice((1, 2, 100))
            )
        case 4:
            data = b"POST /v1/rank HTTP/1.1\r\n folded: x\r\n\tmore\r\n\r\n"
        case 5:
            data = request(RANK, b"/" + b"a" * chance.choice((1000, 70_000)), b"GET")
        case _:
            data = request(
                RANK,
                b"/v1/rank",
                b"POST",
                b"Expect: 100-continue",
                b"Connection: " + chance.choice((b"close", b"keep-alive, close", b"x" * 1000)),
            )
    return Case("heads", data)


def routes(chance: random.Random) -> Case:
    """All paths, by all methods."""
    path, method = chance.choice(PATHS), chance.choice(METHODS)
    if chance.random() < 0.2:
        path = mutated(chance, path)
    body = chance.choice((b"", RANK, b"{}"))
    headers = (
        [
            b"Content-Type: "
            + chance.choice((b"text/plain", b"application/json; charset=utf-7", b"\xff"))
        ]
        if chance.random() < 0.3
        else []
    )
    return Case("routes", request(body, path, method, *headers))


KINDS: Final = (
    spoilt,
    lengths,
    hostile_json,
    hostile_json,
    tensors,
    tensors,
    compressed,
    upgrades,
    pipelined,
    garbage,
    heads,
    routes,
)
