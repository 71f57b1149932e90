"""What came back over a connection: statuses, and what is wrong with them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame

_STATUS: Final = re.compile(
    rb"HTTP/1\.[01] (\d{3}) [^\r\n]*\r\n(.*?)(?=HTTP/1\.[01] \d{3} |\Z)", re.DOTALL
)

FOR_LOAD: Final = (b"was not scored within", b"by its deadline", b"its own deadline", b"waiting")
"""What a 503 may say."""

FAILED: Final = frozenset({"2", "13", "15"})
"""Codes of gRPC with which a server says that it has failed: UNKNOWN, INTERNAL, DATA_LOSS."""

OWN: Final = "inside the scorer"
"""What the scorer says with INTERNAL; gRPC's own library says that of what breaks its protocol."""


@dataclass
class Answers:
    """What a client has been told."""

    statuses: list[int] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    """gRPC's."""
    faults: list[str] = field(default_factory=list)
    """Statuses that no hostile request may get."""

    @property
    def words(self) -> list[str]:
        """All of them, for counting."""
        told = [str(status) for status in self.statuses] + [f"grpc {code}" for code in self.codes]
        return told or ["nothing"]


def read(data: bytes) -> Answers:
    """The answers in what came back."""
    if data.startswith(b"HTTP/1"):
        return _read1(data)
    return _read2(data)


def _read1(data: bytes) -> Answers:
    answers = Answers()
    for found in _STATUS.finditer(data):
        status, rest = int(found[1]), found[2]
        answers.statuses.append(status)
        # Of one that breaks off behind its head there is no telling.
        told = rest.partition(b"\r\n\r\n")[2] or FOR_LOAD[0]
        if status >= 500 and not (status == 503 and any(words in told for words in FOR_LOAD)):
            answers.faults.append(f"{status} {rest[-300:]!r}")
    return answers


def _read2(data: bytes) -> Answers:
    answers, decoder, block = Answers(), Decoder(), b""
    at = 0
    while len(data) - at >= 9:
        try:
            frame, length = Frame.parse_frame_header(memoryview(data[at : at + 9]))
            body = data[at + 9 : at + 9 + length]
            if len(body) < length:
                break
            frame.parse_body(memoryview(body))
        except HyperframeError:
            break
        at += 9 + length
        if not isinstance(frame, HeadersFrame | ContinuationFrame):
            continue
        block += frame.data
        if "END_HEADERS" in frame.flags:
            try:
                fields = dict(decoder.decode(block))
            except HPACKError:
                break
            block = b""
            _note(answers, {str(name): str(value) for name, value in fields.items()})
    return answers


def _note(answers: Answers, fields: dict[str, str]) -> None:
    if (status := fields.get(":status")) is not None:
        answers.statuses.append(int(status))
        if int(status) >= 500 and status != "503":
            answers.faults.append(f"{status} {fields}")
    if (code := fields.get("grpc-status")) is not None:
        answers.codes.append(code)
        told = fields.get("grpc-message", "")
        if code in FAILED and (code != "13" or OWN in told):
            answers.faults.append(f"grpc-status {code}: {told}")
