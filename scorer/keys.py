"""API keys: a file that names them and holds their hashes, read again when it changes.

A key is a long random text, so its SHA-256 alone tells nothing of it; who reads the file cannot
ask with what it holds. A table of the TOML file is a caller::

    [shop]
    sha256 = ["4c806362b613f7496abf284146efd31da90e4b16169fe001841ca17290f427c4"]
    scopes = ["rank"]
    per_s = 200
    burst = 400
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from infra.errors import SettingsError, one_line
from infra.files import mark
from infra.telemetry import get_logger
from scorer.callers import Caller
from scorer.rates import Rate

POLL_S: Final = 1.0
"""How often the file is looked at for a change, at most."""

REMEMBERED: Final = 1024
"""Valid keys that are not hashed again; the one remembered longest goes."""

SCOPE: Final = re.compile(r"rank(:[A-Za-z0-9._-]{1,100})?|admin")
NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")

log = get_logger(__name__)


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""

    sha256: str | list[str]
    """Of the key in hexadecimal; several while one is exchanged for another."""
    scopes: list[str]
    """``rank``, ``rank:NAME`` for one model, ``admin``."""
    per_s: float | None = None
    """Requests a second, of each process; None: as many as it likes."""
    burst: float | None = None
    """Requests at once after a pause; None: those of a second."""

    @property
    def digests(self) -> list[str]:
        """The hashes, however many there are."""
        return [self.sha256] if isinstance(self.sha256, str) else self.sha256


class KeyFile:
    """The API keys of a file. A change that cannot be read leaves those before, and is logged."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            SettingsError: it cannot be read, or is not as it should be.
        """
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        # Before the file is read: what changes meanwhile is seen at the next look.
        self._mark = mark(path)
        self._digests: list[tuple[bytes, Caller]] = []
        self._remembered: dict[str, Caller] = {}
        self._read()

    def __repr__(self) -> str:
        return f"KeyFile({str(self._path)!r}, {len(self._digests)} keys)"

    def caller(self, key: str) -> Caller | None:
        """Whose key it is; None: nobody's."""
        self._follow()
        if (known := self._remembered.get(key)) is not None:
            return known
        digest = hashlib.sha256(key.encode()).digest()
        found: Caller | None = None
        for one, caller in self._digests:  # all of them: how long it takes tells nothing
            if hmac.compare_digest(one, digest):
                found = caller
        if found is not None:
            if len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = found
        return found

    def _follow(self) -> None:
        """Read the file again if it is another than before."""
        now = self._clock()
        if now - self._looked_at < POLL_S:
            return
        self._looked_at = now
        found = mark(self._path)
        if found == self._mark:
            return
        self._mark = found
        try:
            self._read()
        except SettingsError as error:
            log.warning("keys not read again, those before stay", error=str(error))
        else:
            log.info("keys read again", keys=len(self._digests))

    def _read(self) -> None:
        before = {caller.name: caller.rate for _, caller in self._digests}
        digests: list[tuple[bytes, Caller]] = []
        for name, entry in read_keys(self._path).items():
            rate = None
            if entry.per_s is not None:
                rate = Rate(entry.per_s, entry.burst or max(1.0, entry.per_s))
                old = before.get(name)
                if old is not None and (old.per_s, old.burst) == (rate.per_s, rate.burst):
                    rate = old  # a change elsewhere in the file gives nobody a burst
            caller = Caller(name, frozenset(entry.scopes), rate)
            digests += [(bytes.fromhex(digest), caller) for digest in entry.digests]
        self._digests = digests
        self._remembered.clear()


def read_keys(path: Path) -> dict[str, KeyEntry]:
    """The tables of a file of keys, by name.

    Raises:
        SettingsError: it cannot be read, or is not as it should be; no hash is repeated.
    """
    what = f"scorer.keys = {str(path)!r}"
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{what}: cannot be read ({error.strerror}); name a file of keys"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what}: is not TOML: {one_line(error)}") from None
    entries: dict[str, KeyEntry] = {}
    owners: dict[str, str] = {}
    for name, table in tables.items():
        if not NAME.fullmatch(name):
            raise SettingsError(
                f"{what}: the name {name[:64]!r} may have letters, digits and ._@-, 64 at most"
            )
        try:
            entry = entries[name] = msgspec.convert(table, KeyEntry)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{what}: [{name}]: {one_line(error)}") from None
        if (odd := _odd(entry)) is not None:
            raise SettingsError(f"{what}: [{name}]: {odd}")
        for digest in entry.digests:
            if owners.setdefault(digest, name) != name:
                raise SettingsError(
                    f"{what}: [{name}] has the key of [{owners[digest]}]; make one for each"
                )
    return entries


def _odd(entry: KeyEntry) -> str | None:
    """What is wrong with a table; None: nothing."""
    if not entry.digests or not all(map(DIGEST.fullmatch, entry.digests)):
        return "sha256 must be 64 hexadecimal digits in lower case, as of sha256sum, or a list"
    for scope in entry.scopes:
        if not SCOPE.fullmatch(scope):
            return f"the scope {scope[:64]!r} is none of rank, rank:MODEL, admin"
    if entry.per_s is not None and not 0 < entry.per_s < float("inf"):
        return "per_s must be more than 0"
    if entry.burst is not None and (entry.per_s is None or not 1 <= entry.burst < float("inf")):
        return "burst must be at least 1, and goes with per_s"
    return None
