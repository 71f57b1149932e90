from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.behaviors import item_key
from infra.errors import RequestError
from scorer.ids import framed_ids, item_keys, listed_ids

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))

UNHURRIED = settings(deadline=None)  # the first call compiles


def framed(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@UNHURRIED
@given(TEXTS)
def test_ids_are_read_from_raw_bytes(texts: list[str]) -> None:
    ids = framed_ids("candidates", framed([text.encode() for text in texts]), len(texts))
    assert list(ids) == texts
    assert ids.keys.tolist() == [item_key(text) for text in texts]


@UNHURRIED
@given(TEXTS)
def test_ids_are_read_from_a_list(texts: list[str]) -> None:
    assert list(listed_ids("candidates", texts)) == texts
    assert list(listed_ids("candidates", [text.encode() for text in texts])) == texts
    assert item_keys(texts).tolist() == [item_key(text) for text in texts]


@UNHURRIED
@given(st.binary(min_size=1, max_size=8))
def test_what_python_does_not_decode_is_refused(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        with pytest.raises(RequestError, match="not UTF-8") as raised:
            framed_ids("candidates", framed([b"a", text]), 2)
        assert raised.value.field == "candidates[1]"
    else:
        assert framed_ids("candidates", framed([b"a", text]), 2)[1] == text.decode()


@pytest.mark.parametrize(
    "text",
    [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x80\x80\x80", b"\xe2\x82", b"\x80"],
)
def test_letters_that_unicode_does_not_have_are_refused(text: bytes) -> None:
    with pytest.raises(RequestError, match="not UTF-8"):
        listed_ids("user", [text])


def test_the_limit_is_in_bytes() -> None:
    longest = "é" * 128
    assert framed_ids("user", framed([longest.encode()]), 1)[0] == longest
    for longer in (longest.encode() + b"a", b"a" * 100_000):
        with pytest.raises(RequestError, match="longer than 256 bytes in UTF-8"):
            framed_ids("user", framed([longer]), 1)


@pytest.mark.parametrize(
    ("raw", "count", "word"),
    [
        (b"\1\0\0", 1, "cut off"),
        (b"\2\0\0\0a", 1, "cut off"),
        (b"\xff\xff\xff\xffa", 1, "cut off"),
        (b"\0\0\0\0", 1, "empty"),
        (b"\1\0\0\0a", 2, "1 values"),
        (b"\1\0\0\0a" * 3, 2, "3 values"),
        (b"", 2**62, "0 values"),
    ],
)
def test_a_lying_length_is_refused(raw: bytes, count: int, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        framed_ids("candidates", raw, count)


def test_a_part_of_ids_are_ids() -> None:
    ids = framed_ids("candidates", framed([b"a", b"bc", b"d"]), 3)[1:]
    assert list(ids) == ["bc", "d"]
    assert ids.keys.tolist() == [item_key("bc"), item_key("d")]
