from __future__ import annotations

import gzip

import cramjam
import pytest

from streaming.events.payloads import decode_dict, framing, texts_of
from streaming.events.rejects import Reason, Rejected

EVENT = b'{"a": 1}'


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (EVENT, [EVENT]),
        (b" [ " + EVENT + b", 7]\n", [EVENT, b"7"]),
        (EVENT + b"\r\n\n" + EVENT + b"\n", [EVENT, EVENT]),
        (EVENT + b"\nnot one", [EVENT, b"not one"]),
        (b'{\n"a": 1\n}', [b'{\n"a": 1\n}']),
        (b"[1, ", [b"[1, "]),
        (b"\n", [b"\n"]),
    ],
)
def test_a_payload_holds_one_event_an_array_or_one_a_line(value: bytes, texts: list[bytes]) -> None:
    assert texts_of(value) == texts


@pytest.mark.parametrize("value", [None, b"", b"[]"])
def test_a_payload_without_events_is_refused(value: bytes | None) -> None:
    with pytest.raises(Rejected) as refused:
        texts_of(value)
    assert refused.value.reason is Reason.EMPTY


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"\0\0\0\0\x07\x02ab", "schema registry (schema id 7)"),
        (gzip.compress(EVENT, mtime=0), "gzip"),
        (bytes(cramjam.zstd.compress(EVENT)), "zstd"),
        (bytes(cramjam.lz4.compress(EVENT)), "lz4"),
        (b"\xef\xbb\xbf" + EVENT, "byte order mark"),
        (EVENT.decode().encode("utf-16"), "UTF-16"),
        (EVENT.decode().encode("utf-16-le"), "UTF-16"),
        (EVENT.decode().encode("utf-16-be"), "UTF-16"),
    ],
)
def test_what_is_framed_is_named_as_what_it_is(value: bytes, what: str) -> None:
    assert what in (framing(value) or "")
    with pytest.raises(Rejected, match=r": (have|set|send)") as refused:
        decode_dict(value)
    assert refused.value.reason is Reason.NOT_JSON
    assert what in refused.value.detail


def test_what_is_not_known_has_no_name() -> None:
    assert framing(b"click") is None
