"""Every error that Lifelong raises on purpose.

Each message is one line: what was wrong, where, and what to do about it.

    LifelongError
    ├── SettingsError            a setting is missing, unknown or has a bad value
    ├── BrokerError              Kafka cannot be started, reached or asked
    ├── PrometheusError          Prometheus cannot be started, reached or asked
    ├── RegistryError            the Schema Registry did not give a schema
    │   ├── RegistryUnavailable  it cannot be reached now, or refuses to answer; retry
    │   └── SchemaUnknown        it knows no such schema
    ├── SourceError              a file to replay or backfill cannot be read as events
    ├── BundleError              a model bundle cannot be used
    │   ├── BundleMissing        there is no bundle at that place
    │   ├── BundleCorrupt        a file of it is absent, truncated or fails its checksum
    │   ├── BundleIncompatible   it was written in a format or shape that this version does not read
    │   └── BundleUntrusted      it is not signed by those who are to sign it
    ├── StoreError               a store operation did not happen
    │   ├── StoreUnavailable     the store cannot be reached now; retry
    │   ├── StoreFull            the store has no room; retry once there is some
    │   ├── StoreCorrupt         a record, or a store's file, cannot be understood
    │   │   ├── RecordDamaged    it is not what was written
    │   │   └── RecordNewer      it is of a later format, which only a newer version reads
    │   ├── StoreMismatch        the store is another one than the settings say
    │   └── RecordTooLarge       one user's record exceeds what the store can hold
    ├── TrainingError            a training run cannot start or go on
    │   └── DataError            a data set is missing, or cannot be read as interactions
    └── RequestError             a ranking request is malformed or exceeds a limit
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

LISTED: Final = 12
"""Most names that a hint lists."""


def one_line(said: object, limit: int = 300) -> str:
    """An error's message, or any text, on one line of at most ``limit`` characters.

    An error without a word is told by its type.
    """
    line = " ".join(str(said).split())
    if not line and isinstance(said, BaseException):
        line = type(said).__name__
    return line if len(line) <= limit else line[: limit - 3] + "..."


def typed_line(error: BaseException) -> str:
    """An error as a line of a log: `one_line`, after its type where it is not one of ours."""
    line = one_line(error)
    return line if isinstance(error, LifelongError) else f"{type(error).__name__}: {line}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``; None: nothing is."""
    return next(iter(difflib.get_close_matches(name, sorted(known), 1)), None)


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, or what there is.

    >>> hint("purchse", ["click", "purchase"])
    'did you mean purchase?'
    >>> hint("x", ["click", "purchase"])
    'choose one of: click, purchase'
    """
    known = list(known)
    if (near := nearest(name, known)) is not None:
        return f"did you mean {near}?"
    shown = ", ".join(known[:LISTED]) + (", ..." if len(known) > LISTED else "")
    return f"choose one of: {shown}"


class LifelongError(Exception):
    """Base of every error a user can cause or must act upon."""


class SettingsError(LifelongError):
    """A setting is missing, unknown or has a bad value; the message names the key."""


class PrometheusError(LifelongError):
    """Prometheus cannot be started, reached or asked."""


class BrokerError(LifelongError):
    """Kafka cannot be started, reached or asked."""


class RegistryError(LifelongError):
    """The Schema Registry did not give a schema."""


class RegistryUnavailable(RegistryError):
    """The Schema Registry cannot be reached now, or refuses to answer; what it says may pass."""


class SchemaUnknown(RegistryError):
    """The Schema Registry knows no such schema."""


class SourceError(LifelongError):
    """A file to replay or backfill cannot be read as behavior events."""


class BundleError(LifelongError):
    """A model bundle cannot be used; the one in service stays."""


class BundleMissing(BundleError):
    """There is no bundle at that place."""


class BundleCorrupt(BundleError):
    """A file of the bundle is absent, truncated or fails its checksum."""


class BundleIncompatible(BundleError):
    """The bundle was written in a format or shape that this version does not read."""


class BundleUntrusted(BundleError):
    """The bundle is not signed by those whom the settings trust."""


class StoreError(LifelongError):
    """A store operation did not happen; nothing may be acknowledged on its strength.

    Attributes:
        code: the result code of the server that said so; None: no server did.
    """

    code: int | None = None


class StoreUnavailable(StoreError):
    """The store cannot be reached now. Safe to retry: every write is idempotent."""


class StoreFull(StoreError):
    """The store has no room left. Safe to retry once there is some."""


class StoreCorrupt(StoreError):
    """A stored record cannot be understood, and the message names the user; or a store's file."""


class RecordDamaged(StoreCorrupt):
    """A stored record is not what was written. Stores tell of it and go on with what is left.

    Attributes:
        user: whose it is.
    """

    def __init__(self, user: str, message: str) -> None:
        super().__init__(message)
        self.user = user


class RecordNewer(StoreCorrupt):
    """A stored record is of a format that only a newer version reads. It is left alone, and whoever
    goes over many users goes on with the others.
    """


class StoreMismatch(StoreError):
    """A store is not the one that was asked for, or not as the settings say."""


class RecordTooLarge(StoreError):
    """One user's record exceeds what the store can hold; the message names the user."""


class TrainingError(LifelongError):
    """A training run cannot start or go on."""


class DataError(TrainingError):
    """A data set is missing, or cannot be read as interactions."""


class RequestError(LifelongError):
    """A ranking request is malformed or exceeds a limit.

    Attributes:
        field: name of the offending field, as the client wrote it.
        status: HTTP status of the scorer that said so to a client; 0: none did.
    """

    status: int = 0

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


_WITHOUT_PLACES: Final[Mapping[type[StoreError], str]] = {
    StoreUnavailable: "the store cannot be reached",
    StoreFull: "the store has no room",
    RecordDamaged: "a record of the store is damaged",
    RecordNewer: "a record of the store is of a later version",
    StoreCorrupt: "something in the store cannot be understood",
    StoreMismatch: "the store is another one than the settings say",
    RecordTooLarge: "a record exceeds what the store can hold",
}


def without_places(error: StoreError) -> str:
    """What failed, for those who need not know where: without addresses, paths and users.

    >>> without_places(StoreUnavailable("the store at 10.0.0.7:3000 cannot be reached"))
    'the store cannot be reached'
    """
    kinds = (_WITHOUT_PLACES[kind] for kind in type(error).__mro__ if kind in _WITHOUT_PLACES)
    return next(kinds, "the store failed")
