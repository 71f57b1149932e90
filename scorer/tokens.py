"""Tokens of an issuer (JWT, RFC 7519): whose they are, by the issuer's public keys.

The keys (JWKS, RFC 7517) are in a file, or where the issuer publishes them. They are kept, and
fetched again for a token that names one that is not among them, though not more than once a minute,
and each hour for those that were taken back.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from infra.errors import SettingsError, one_line, typed_line
from infra.telemetry import get_logger
from scorer.callers import Caller
from scorer.keys import SCOPE

FAMILIES: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Signatures that are taken, by the type of key. None has a secret that we would share."""

ALGORITHMS: Final = [name for names in FAMILIES.values() for name in names]

LEEWAY_S: Final = 30
"""How far the issuer's clock may be from ours."""

REFRESH_S: Final = 60.0
"""Time between two fetches of the keys, at least."""

KEEP_S: Final = 3600.0
"""Time after which the keys are fetched again in any case."""

FETCH_TIMEOUT_S: Final = 3.0
MAX_KEYS_BYTES: Final = 1_048_576
"""Largest set of keys that is read."""

REMEMBERED: Final = 1024
"""Valid tokens that are not verified again; the one remembered longest goes."""

NAME_CHARS: Final = 64
"""How much of a subject counts as a caller's name."""

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Keys = dict[str, Any]
"""A key of a set, as JSON has it."""

log = get_logger(__name__)


class IssuedTokens:
    """Tells callers by the tokens of one issuer for one audience. Used from one event loop."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        fetch: Callable[[], bytes],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Know no key yet.

        Args:
            issuer: what tokens must say of who made them.
            audience: what they must say of whom they are for.
            fetch: gives the set of keys, in a thread; whatever it raises leaves those before.
            clock: seconds.
            now: seconds since epoch, of the machine.
        """
        self._issuer = issuer
        self._audience = audience
        self._fetch = fetch
        self._clock = clock
        self._now = now
        self._keys: list[Keys] = []
        self._fetched_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._remembered: dict[str, tuple[Caller, float]] = {}

    async def caller(self, token: str) -> Caller | None:
        """Whose token it is; None: it is not valid here."""
        if token.count(".") != 2:
            return None
        if (known := self._remembered.get(token)) is not None:
            if self._now() < known[1]:
                self._keep_fresh()
                return known[0]
            del self._remembered[token]
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(header)
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, LookupError, ValueError, TypeError) as error:
            log.debug("token refused", error=typed_line(error))
            return None
        caller = caller_of(claims)
        if caller is not None:
            if len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[token] = caller, float(claims["exp"]) + LEEWAY_S
        return caller

    async def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK | None:
        """The key that a token names, once it is there; None: there is no such key."""
        found = self._named(header)
        if found is None and self._may_fetch(REFRESH_S):
            self._start_fetching()
        if found is None and self._fetching is not None:
            await asyncio.shield(self._fetching)
            found = self._named(header)
        self._keep_fresh()
        if found is None:
            return None
        name = header.get("alg")
        if name not in FAMILIES[found["kty"]] or found.get("alg", name) != name:
            return None
        return jwt.PyJWK(found, name)

    def _named(self, header: Mapping[str, Any]) -> Keys | None:
        kid = header.get("kid")
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.get("kid") == kid), None)

    def _may_fetch(self, after_s: float) -> bool:
        at = self._fetched_at
        return self._fetching is None and (at is None or self._clock() - at >= after_s)

    def _keep_fresh(self) -> None:
        """Have the keys fetched again once they are old; nobody waits for it."""
        if self._may_fetch(KEEP_S):
            self._start_fetching()

    def _start_fetching(self) -> None:
        self._fetched_at = self._clock()
        self._fetching = asyncio.create_task(self._fetch_keys())

    async def _fetch_keys(self) -> None:
        try:
            keys = read_keys(await asyncio.to_thread(self._fetch))
        except (OSError, ValueError, HTTPException) as error:
            log.warning("keys of the issuer not fetched", error=one_line(error))
        else:
            if keys != self._keys:
                self._keys = keys
                self._remembered.clear()
        finally:
            self._fetching = None


def issued_tokens(issuer: str, audience: str, keys: str) -> IssuedTokens:
    """Tokens whose keys are in a file, or at a URL.

    Raises:
        SettingsError: the file cannot be read as keys, or the URL is none that is asked.
    """
    parts = urlsplit(keys)
    if parts.scheme in {"http", "https"}:
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise SettingsError(
                f"scorer.jwt_keys = {keys!r}: whoever is between could exchange the keys; use https"
            )
        return IssuedTokens(issuer, audience, lambda: fetch_url(keys))
    path = Path(keys)
    try:
        read_keys(path.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"scorer.jwt_keys = {keys!r}: cannot be read ({error.strerror}); name a file or a URL"
        ) from None
    except ValueError as error:
        raise SettingsError(f"scorer.jwt_keys = {keys!r}: {one_line(error)}") from None
    return IssuedTokens(issuer, audience, path.read_bytes)


def caller_of(claims: Mapping[str, Any]) -> Caller | None:
    """The caller that verified claims tell of; None: they name nobody.

    >>> caller_of({"sub": "shop", "scope": "openid rank"})
    Caller(name='shop', scopes=frozenset({'rank'}), rate=None)
    """
    name = claims.get("sub") or claims.get("client_id") or claims.get("azp")
    if not isinstance(name, str):
        return None
    scopes: set[str] = set()
    for claim in ("scope", "scp"):
        told = claims.get(claim, ())
        words = told.split() if isinstance(told, str) else told
        if isinstance(words, list):
            scopes.update(word for word in words if isinstance(word, str) and SCOPE.fullmatch(word))
    return Caller(name[:NAME_CHARS], frozenset(scopes))


def read_keys(data: bytes) -> list[Keys]:
    """The public keys for signatures in a set.

    Raises:
        ValueError: it is no set of keys, or has none for us.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON; expected a set of keys (JWKS)") from None
    listed = tree.get("keys") if isinstance(tree, dict) else None
    keys = [
        key
        for key in (listed if isinstance(listed, list) else ())
        if isinstance(key, dict) and key.get("kty") in FAMILIES and key.get("use", "sig") == "sig"
    ]
    if not keys:
        raise ValueError("has no public keys for signatures; expected a set of keys (JWKS)")
    return keys


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it may lead away from https."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        return None


def fetch_url(url: str) -> bytes:
    """What is at a URL, up to `MAX_KEYS_BYTES`.

    Raises:
        OSError: it cannot be fetched within `FETCH_TIMEOUT_S`.
        ValueError: it is larger.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(url, timeout=FETCH_TIMEOUT_S) as answer:
        data: bytes = answer.read(MAX_KEYS_BYTES + 1)
    if len(data) > MAX_KEYS_BYTES:
        raise ValueError(f"is larger than {MAX_KEYS_BYTES} bytes")
    return data
