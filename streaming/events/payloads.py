"""JSON payloads: the texts of the events that one holds, each as an object, or what else it is."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from infra.errors import one_line
from streaming.events.rejects import Reason, Rejected, kind

T = TypeVar("T")

_Texts: Final = msgspec.json.Decoder(list[msgspec.Raw])
_Objects: Final = msgspec.json.Decoder(dict[str, Any])

_FRAME_BYTES: Final = 5
_COMPRESSED: Final = "have the producer compress with compression.type, which is undone here"
_UTF_16: Final = "a text in UTF-16: have it sent as UTF-8"
_BEGINNINGS: Final = (
    (b"\x1f\x8b", f"gzip: {_COMPRESSED}"),
    (b"\x28\xb5\x2f\xfd", f"zstd: {_COMPRESSED}"),
    (b"\x04\x22\x4d\x18", f"lz4: {_COMPRESSED}"),
    (b"\xef\xbb\xbf", "a text with a byte order mark before it: have it sent as UTF-8 without one"),
    (b"\xff\xfe", _UTF_16),
    (b"\xfe\xff", _UTF_16),
    (b"{\0", _UTF_16),
    (b"[\0", _UTF_16),
    (b"\0{", _UTF_16),
    (b"\0[", _UTF_16),
    (b"PAR1", "a Parquet file: send its rows as records (lifelong replay)"),
    (b"Obj\x01", "an Avro file: send its rows as records"),
)


def texts_of(value: bytes | None) -> list[bytes]:
    """The texts of a payload's events: of an array, of lines, or of the one that it is.

    Raises:
        Rejected: there is none.

    >>> texts_of(b'[{"a": 1}, {"a": 2}]')
    [b'{"a": 1}', b'{"a": 2}']
    """
    if not value:
        raise Rejected(Reason.EMPTY, "no payload")
    if value[:1] == b"{" and b"\n" not in value:
        return [value]
    text = value.strip(b" \t\r\n")
    if text[:1] == b"[":
        try:
            texts = [bytes(one) for one in _Texts.decode(text)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return [value]  # not JSON, which is told of it as of any other
        if not texts:
            raise Rejected(Reason.EMPTY, "an array without events")
        return texts
    if b"\n" in text:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            _Objects.decode(lines[0])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return [value]  # one event over several lines: the first alone is none
        return lines
    return [value]


def decode_object(text: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """An object in JSON, as a decoder of objects gives it.

    Raises:
        Rejected: it is not JSON, not an object, or holds a number of too many digits.
    """
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    # Decoded once more, as anything, to tell what is wrong.
    try:
        found = msgspec.json.decode(text)
        if isinstance(found, dict):  # only what is skipped above can differ
            return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.TOO_LONG, one_line(error)) from None
    except RecursionError:
        raise Rejected(Reason.NOT_JSON, "nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(Reason.NOT_JSON, framing(text) or one_line(error)) from None
    raise Rejected(Reason.WRONG_SHAPE, f"not an object but {kind(found)}")


def decode_dict(text: bytes) -> dict[str, Any]:
    """An object in JSON with all that it holds; raises as `decode_object` does."""
    return decode_object(text, _Objects)


def framing(value: bytes) -> str | None:
    """What a payload that is no JSON seems to be, in a line; None: nothing that is known.

    >>> framing(bytes.fromhex("000000002a02"))
    'framed by a schema registry (schema id 42): set the format of the source to what it holds'
    """
    for begins, what in _BEGINNINGS:
        if value.startswith(begins):
            return what
    if value[:1] == b"\0" and len(value) > _FRAME_BYTES:
        number = int.from_bytes(value[1:_FRAME_BYTES], "big")
        return (
            f"framed by a schema registry (schema id {number}): set the format of the source to"
            " what it holds"
        )
    return None
