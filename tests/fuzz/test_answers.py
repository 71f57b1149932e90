"""Whether what a scorer should never say is found in what comes back."""

from __future__ import annotations

import pytest

from tests.fuzz.answers import read
from tests.fuzz.http2 import Fields, frame, head, packed

REFUSAL = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}"


def test_all_answers_of_a_connection_are_read() -> None:
    assert read(REFUSAL * 3).statuses == [400, 400, 400]
    assert read(REFUSAL).faults == []


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (500, b"the request failed inside the scorer", True),
        (502, b"", True),
        (503, b"request was not scored within 1 s", False),
        (503, b"the store cannot be reached", True),
    ],
)
def test_a_failure_is_found_behind_other_answers(status: int, body: bytes, found: bool) -> None:
    failure = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)
    assert bool(read(REFUSAL + failure).faults) == found


@pytest.mark.parametrize(
    ("code", "told", "found"),
    [
        (b"2", b"Unexpected DecodeError", True),
        (b"13", b"the request failed inside the scorer", True),
        (b"13", b"Compression bit set but no encoding configured", False),
        (b"3", b"user is missing", False),
    ],
)
def test_a_failure_of_grpc_is_found(code: bytes, told: bytes, found: bool) -> None:
    fields: Fields = [(b":status", b"200"), (b"grpc-status", code), (b"grpc-message", told)]
    answers = read(packed(head(1, fields, "END_STREAM")))
    assert answers.codes == [code.decode()]
    assert bool(answers.faults) == found


def test_a_stream_that_breaks_off_is_read_as_far_as_it_goes() -> None:
    whole = packed(head(1, [(b":status", b"200")]))
    assert read(whole + frame(0, 0, 1, b"abc", 1000)).statuses == [200]
