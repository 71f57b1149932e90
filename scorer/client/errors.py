"""What the scorer, or the way to it, did wrong, whatever protocol says so.

ScorerError                what the scorer or the way to it did wrong
└── ScorerUnavailable      not reachable, overloaded or not ready: try again later
infra.errors.RequestError  what the request did wrong; names the field
"""

from __future__ import annotations

import re
import ssl
from typing import Final

import msgspec

from infra.errors import LifelongError, RequestError
from scorer.client.exchange import Reply

TRY_LATER: Final = frozenset({429, 503})
"""Statuses by which a scorer, or a proxy before it, says that it has too much to do."""

FIELD: Final = re.compile(
    r"(?:user|candidates|time|body|name|version|outputs|inputs|parameters|request|credential)\b\S*"
)
"""What our errors begin with where the protocol has no place for a field."""


class ScorerError(LifelongError):
    """The scorer failed, or what answered is not a scorer.

    Attributes:
        status: of its answer, as HTTP has it; 0: there was none, or it was no ranking.
    """

    status: int = 0


class ScorerUnavailable(ScorerError):
    """The scorer cannot be reached, is overloaded or not ready; try again later.

    Attributes:
        retry_after_s: when, if the scorer said so.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def refusal(url: str, reply: Reply) -> LifelongError:
    """What a reply that is no answer becomes."""
    field, detail = told(reply.status, reply.body)
    error: RequestError | ScorerError
    if reply.status in TRY_LATER:
        error = ScorerUnavailable(f"{url}: {detail}", reply.retry_after_s)
    elif 400 <= reply.status < 500:
        error = RequestError(field, detail)
    else:
        error = ScorerError(f"{url} failed ({reply.status}): {detail}")
    error.status = reply.status
    return error


def unreachable(url: str, error: OSError, timeout_s: float) -> ScorerError:
    """What a connection becomes that failed."""
    if isinstance(error, TimeoutError):
        return too_late(url, timeout_s)
    if isinstance(error, ssl.SSLError) and not isinstance(
        error, ssl.SSLEOFError | ssl.SSLZeroReturnError
    ):
        what = getattr(error, "verify_message", "") or error.reason or str(error)
        return untrusted(url, what)
    what = error.strerror or str(error) or type(error).__name__
    return ScorerUnavailable(f"{url} cannot be reached: {what}; is a scorer running?")


def too_late(url: str, timeout_s: float) -> ScorerUnavailable:
    """What an answer becomes that did not come."""
    return ScorerUnavailable(f"{url} has not answered within {timeout_s:g} s")


def untrusted(url: str, what: str) -> ScorerError:
    """What a handshake becomes of which one side did not like the other's certificate, or that
    was none: coming again does not help.
    """
    return ScorerError(
        f"{url}: no TLS with it: {what}; name its authority, and a certificate if it wants one"
        " (scorer.client.Tls)"
    )


def told(status: int, body: bytes) -> tuple[str, str]:
    """The field that an answer finds wrong, and what it says in a sentence, in either protocol.

    >>> told(400, b'{"detail": "user is missing", "field": "user", "status": 400}')
    ('user', 'user is missing')
    >>> told(400, b'{"error": "candidates[3] is empty"}')
    ('candidates[3]', 'candidates[3] is empty')
    >>> told(502, b"<html>")
    ('request', 'status 502')
    """
    try:
        said = msgspec.json.decode(body, type=_Told)
    except msgspec.DecodeError:
        said = _Told()
    detail = said.detail or said.error or f"status {status}"
    if said.field:
        return said.field, detail
    found = FIELD.match(detail)
    return "request" if found is None else found[0], detail


class _Told(msgspec.Struct):
    """What of a problem's details, or of an error of Open Inference, becomes an exception."""

    field: str = ""
    detail: str = ""
    error: str = ""
