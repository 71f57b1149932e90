"""Access: who asks, what they may ask for, and how often, the same over HTTP and gRPC.

Whoever asks shows a credential: an API key (`scorer.keys`), or a token of an issuer that the
settings name (`scorer.tokens`). Where neither is set up there is no `Access`, and nobody is asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from infra.errors import SettingsError
from infra.settings import ScorerSettings
from scorer.callers import Caller
from scorer.keys import KeyFile
from scorer.limits import Refused

MAX_CREDENTIAL_CHARS: Final = 8_192
"""Longest credential that is looked at."""

RETRY_AT_MOST_S: Final = 60
"""Longest time after which a caller who asked too often is asked to come again."""

BEARER: Final = "bearer "
API_KEY: Final = "x-api-key"
AUTHORIZATION: Final = "authorization"


class Need(Enum):
    """What a caller must have for what is asked."""

    NOTHING = "nothing"
    """It is for anybody, and no credential is looked at."""
    NAME = "a credential"
    """Any valid one."""
    RANK = "rank"
    """One with the scope ``rank``, or ``rank:NAME`` of the model in service."""
    ADMIN = "admin"
    """One with the scope ``admin``."""


class Tokens(Protocol):
    """Tokens of somebody who knows our callers."""

    async def caller(self, token: str) -> Caller | None:
        """Whose token it is; None: it is not valid here."""


class Access:
    """Tells callers by their credentials, and refuses what they may not. Used from the event loop
    of its process.
    """

    def __init__(
        self,
        keys: KeyFile | None,
        tokens: Tokens | None,
        model: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask everybody from now on.

        Args:
            keys: the API keys; None: there are none.
            tokens: what checks tokens; None: none are taken.
            model: the name of the model in service; it may raise `Refused` while there is none.
            clock: seconds.
        """
        self._keys = keys
        self._tokens = tokens
        self._model = model
        self._clock = clock

    async def check(self, credential: str, need: Need) -> Caller:
        """Who shows the credential, if they may have what is needed now.

        Args:
            credential: as it was sent; "": none was.
            need: another than NOTHING.

        Raises:
            Refused: the credential is none of ours (401), it is not enough (403), or its owner has
                asked too often (429).
        """
        caller = await self._caller(credential)
        if not self._may(caller, need):
            scope = f"rank or rank:{self._model()}" if need is Need.RANK else need.value
            raise Refused(
                403, "forbidden", "credential", f"of {caller.name} lacks the scope {scope}"
            )
        if caller.rate is not None:
            wait_s = caller.rate.wait_s(self._clock())
            if wait_s > 0:
                raise Refused(
                    429,
                    "rate",
                    "credential",
                    f"of {caller.name} may ask {caller.rate.per_s:g} times a second",
                    min(RETRY_AT_MOST_S, math.ceil(wait_s)),
                )
        return caller

    def known(self, credential: str) -> Caller | None:
        """Whose key a credential is, if they may rank, as often as they like; None: `check` is to
        be asked.
        """
        if self._keys is None or not 0 < len(credential) <= MAX_CREDENTIAL_CHARS:
            return None
        caller = self._keys.caller(credential)
        if caller is None or caller.rate is not None:
            return None
        try:
            return caller if self._may(caller, Need.RANK) else None
        except Refused:  # there is no model yet
            return None

    async def _caller(self, credential: str) -> Caller:
        if not credential:
            raise Refused(
                401,
                "unauthenticated",
                "credential",
                "is missing; send Authorization: Bearer KEY, or x-api-key",
            )
        found: Caller | None = None
        if len(credential) <= MAX_CREDENTIAL_CHARS:
            if self._keys is not None:
                found = self._keys.caller(credential)
            if found is None and self._tokens is not None:
                found = await self._tokens.caller(credential)
        if found is None:
            raise Refused(401, "unauthenticated", "credential", "is not valid here")
        return found

    def _may(self, caller: Caller, need: Need) -> bool:
        if need is Need.RANK:
            return "rank" in caller.scopes or (
                # While no model is there, nobody is told that this one is not theirs.
                any(scope.startswith("rank:") for scope in caller.scopes)
                and f"rank:{self._model()}" in caller.scopes
            )
        return need is Need.NAME or need.value in caller.scopes


def open_access(settings: ScorerSettings, model: Callable[[], str]) -> Access | None:
    """The access that the settings ask for; None: nobody is asked.

    Raises:
        SettingsError: a file cannot be used.
    """
    keys = None if settings.keys is None else KeyFile(settings.keys)
    tokens: Tokens | None = None
    told = {name: getattr(settings, name) for name in ("jwt_issuer", "jwt_audience", "jwt_keys")}
    if any(told.values()):
        missing = [f"scorer.{name}" for name, value in told.items() if not value]
        if missing:
            raise SettingsError(f"{' and '.join(missing)} must be set, too, for tokens to be taken")
        # Not at the top: only those who take tokens need what this imports.
        from scorer.tokens import issued_tokens

        tokens = issued_tokens(told["jwt_issuer"], told["jwt_audience"], told["jwt_keys"])
    return None if keys is None and tokens is None else Access(keys, tokens, model)


def credential_of(authorization: str, api_key: str) -> str:
    """The credential among the headers of those names, "" where one was not sent.

    >>> credential_of("Bearer abc", ""), credential_of("Basic abc", "def"), credential_of("", "")
    ('abc', 'def', '')
    """
    if authorization[: len(BEARER)].lower() == BEARER:
        return authorization[len(BEARER) :].strip()
    return api_key.strip()
