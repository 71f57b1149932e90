from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import cramjam
import httpx
import pytest

from tests.scorer.conftest import World, client_of

RANK = "/v1/rank"
BODY = json.dumps({"user": "u", "candidates": [f"item-{i}" for i in range(1, 41)]}).encode()
LIMIT = 20_000


def zstd(data: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(data))


def bare(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


FOLDED = [
    ("gzip", gzip.compress(BODY)),
    ("x-gzip", gzip.compress(BODY[:20]) + gzip.compress(BODY[20:])),
    ("deflate", zlib.compress(BODY)),
    ("deflate", bare(BODY)),
    ("zstd", zstd(BODY)),
    ("Identity", BODY),
]


@pytest.fixture
async def plain(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client that accepts nothing compressed unless it says so, of a scorer that compresses."""
    settings = world.settings.model_copy(update={"compress_bytes": 1_000})
    async with client_of(replace(world, settings=settings)) as client:
        client.headers.pop("accept-encoding")
        yield client


@pytest.mark.parametrize(("coding", "body"), FOLDED)
async def test_a_body_may_be_compressed(plain: httpx.AsyncClient, coding: str, body: bytes) -> None:
    response = await plain.post(RANK, content=body, headers={"content-encoding": coding})
    assert response.status_code == 200, response.text
    assert response.json() == (await plain.post(RANK, content=BODY)).json()


@pytest.mark.parametrize(("coding", "body"), FOLDED[:-1])
async def test_a_body_that_is_cut_off_is_refused(
    plain: httpx.AsyncClient, coding: str, body: bytes
) -> None:
    for cut in (body[:-1], body[:9], BODY):
        response = await plain.post(RANK, content=cut, headers={"content-encoding": coding})
        assert response.status_code == 400
        assert "body" in response.text


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(bytes(5_000_000))),
        ("gzip", gzip.compress(bytes(LIMIT)) * 2),
        ("deflate", zlib.compress(bytes(5_000_000))),
        ("deflate", bare(bytes(5_000_000))),
        ("zstd", zstd(bytes(5_000_000))),
        ("zstd", zstd(bytes(LIMIT + 1))),
    ],
)
async def test_a_body_that_unfolds_beyond_the_limit_is_refused(
    plain: httpx.AsyncClient, coding: str, body: bytes
) -> None:
    response = await plain.post(RANK, content=body, headers={"content-encoding": coding})
    assert response.status_code == 413
    assert "20000 bytes when decompressed" in response.text


async def test_an_unknown_coding_is_refused(plain: httpx.AsyncClient) -> None:
    for coding in ("br", "gzip, gzip"):
        response = await plain.post(RANK, content=BODY, headers={"content-encoding": coding})
        assert response.status_code == 415
        assert coding in response.text


@pytest.mark.parametrize(
    ("accepts", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, zstd", "zstd"),
        ("GZIP;q=0.9, zstd;q=0.1", "gzip"),
        ("*", "zstd"),
        ("*;q=1, zstd;q=0", "gzip"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip;q=x", None),
        (";,;q=,=", None),
    ],
)
async def test_an_answer_is_compressed_as_the_client_accepts(
    plain: httpx.AsyncClient, accepts: str, coding: str | None
) -> None:
    expected = (await plain.post(RANK, content=BODY)).json()
    headers = {"accept-encoding": accepts}
    async with plain.stream("POST", RANK, content=BODY, headers=headers) as response:
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
    assert response.headers.get("content-encoding") == coding
    assert int(response.headers["content-length"]) == len(raw)
    unfold: dict[str | None, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "deflate": zlib.decompress,
        "zstd": lambda data: bytes(cramjam.zstd.decompress(data)),
        None: bytes,
    }
    assert json.loads(unfold[coding](raw)) == expected


async def test_caches_are_told_that_an_answer_varies(plain: httpx.AsyncClient) -> None:
    response = await plain.post(RANK, content=BODY, headers={"accept-encoding": "gzip"})
    assert response.headers["vary"] == "Accept-Encoding"


async def test_a_small_answer_is_not_compressed(plain: httpx.AsyncClient) -> None:
    body = {"user": "u", "candidates": ["item-1"]}
    response = await plain.post(RANK, json=body, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in response.headers
