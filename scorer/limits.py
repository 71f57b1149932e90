"""What all ranking requests share: their limits, and what is said of one that is wrong.

Every limit that a client can exceed is here or in `infra.settings.ScorerSettings`; each refusal
names the field, as the client wrote it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

from infra.errors import RequestError, hint
from infra.settings import MAX_ITEM_BYTES, ScorerSettings, enough_body_bytes
from infra.store import MAX_USER_BYTES

MAX_ITEM_CHARS: Final = MAX_ITEM_BYTES
"""Longest item id in characters, each of a byte at least."""

MAX_TIME_MS: Final = 253_402_300_799_999
"""Latest request time, ms since epoch: the end of the year 9999."""

RETRY_AFTER_S: Final = 1
"""Seconds after which a refused client should come again; a full queue is worked off by then."""

User = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_USER_BYTES)]
Item = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ITEM_CHARS)]
Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]

T = TypeVar("T")


class Refused(RequestError):
    """A request refused with another HTTP status than 400.

    Attributes:
        status: the HTTP status.
        reason: one word for the metrics.
        retry_after_s: when a client should come again; None: not without a change.
    """

    def __init__(
        self, status: int, reason: str, field: str, message: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(field, message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


def check_user(user: str) -> None:
    """Refuse an id longer than any store keeps."""
    # Only an id with non-ASCII letters can pass the limit in characters and exceed it in bytes.
    if not user.isascii() and len(user.encode()) > MAX_USER_BYTES:
        raise RequestError("user", f"is longer than {MAX_USER_BYTES} bytes in UTF-8")


def too_small_body(settings: ScorerSettings) -> str | None:
    """What to say where the largest body is too small for the candidates that are allowed; None: it
    is not.
    """
    enough = enough_body_bytes({"max_candidates": settings.max_candidates})
    if settings.max_body_bytes >= enough:
        return None
    return (
        f"scorer.max_body_bytes = {settings.max_body_bytes} is less than"
        f" scorer.max_candidates = {settings.max_candidates} ids may take: raise it to {enough},"
        " lower the other, or know that your ids are shorter"
    )


def check_candidate_count(count: int, limit: int, field: str = "candidates") -> None:
    """Refuse a request without candidates or with too many; or one with none for any user."""
    if count == 0:
        raise RequestError(field, "is empty, expected at least one id")
    if count > limit:
        raise RequestError(field, f"holds {count} ids, at most {limit} are ranked in one request")


_UNKNOWN_FIELD: Final = re.compile(r"unknown field `(.*?)`(?: - at `(.*)`)?$", re.DOTALL)
_MISSING_FIELD: Final = re.compile(r"missing required field `(.*?)`(?: - at `(.*)`)?$")
_WRONG_CHOICE: Final = re.compile(
    r"^Invalid enum value (?P<quote>['\"])(?P<value>.*)(?P=quote) - at `\$\.(?P<field>\w+)`$",
    re.DOTALL,
)
_WRONG_FIELD: Final = re.compile(r"^(.*) - at `(.*)`$", re.DOTALL)

SHOWN_CHARS: Final = 64
"""How much of a client's own text an error repeats."""


def decode_json(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body as the decoder's type; anything wrong with it is a `RequestError`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error), decoder.type) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        what = "is empty" if not body.strip() else f"is not JSON: {error}"
        raise RequestError("body", f"{what}; expected a JSON object") from None
    except RecursionError:
        raise RequestError("body", "is nested too deeply") from None


def _explained(message: str, expected: Any) -> RequestError:
    """msgspec's sentence as field and message."""
    if unknown := _UNKNOWN_FIELD.search(message):
        name, at = unknown[1][:SHOWN_CHARS], _field(unknown[2])
        # Nested structs have no hint: the path does not tell their type.
        names = [] if at else [field.encode_name for field in msgspec.structs.fields(expected)]
        return RequestError(
            f"{at}.{name}" if at else name,
            f"is not a field; {hint(name, names)}" if names else "is not a field",
        )
    if missing := _MISSING_FIELD.search(message):
        name, at = missing[1], _field(missing[2])
        return RequestError(f"{at}.{name}" if at else name, "is missing")
    if choice := _WRONG_CHOICE.search(message):
        value, name = choice["value"][:SHOWN_CHARS], choice["field"]
        return RequestError(name, f"is {value!r}, expected {', '.join(_choices(expected, name))}")
    if wrong := _WRONG_FIELD.search(message):
        what = wrong[1].replace("`", "")
        return RequestError(_field(wrong[2]) or "body", what[0].lower() + what[1:])
    what = message.replace("`", "")
    return RequestError("body", what[0].lower() + what[1:])


def _choices(expected: Any, name: str) -> tuple[str, ...]:
    """The texts that a field of a struct may be."""
    (kind,) = (field.type for field in msgspec.structs.fields(expected) if field.name == name)
    literals = [one for one in (kind, *get_args(kind)) if get_origin(one) is Literal]
    return get_args(literals[0])


def _field(path: str | None) -> str:
    """msgspec's ``$.candidates[3]`` as ``candidates[3]``."""
    return (path or "").removeprefix("$").removeprefix(".")[:SHOWN_CHARS]
