"""The identity record of a store: how it is made, compared with the settings, and written."""

from __future__ import annotations

import secrets

import msgspec

from infra.errors import StoreCorrupt, StoreMismatch, one_line
from infra.store import LAYOUT, Identity, StoreOptions


def new_identity(options: StoreOptions) -> Identity:
    """The identity of a store that is being made."""
    return Identity(
        name=options.name,
        id=secrets.token_hex(16),
        layout=LAYOUT,
        length=options.length,
        ttl_s=options.ttl_s,
        actions=options.actions,
        created_ms=options.clock(),
    )


def agree(found: Identity, options: StoreOptions, where: str) -> Identity:
    """The identity that an existing store is to have when it is opened for writing.

    Args:
        found: what the store says.
        options: what it is opened with.
        where: names the store in errors.

    Raises:
        StoreMismatch: it is another store, of a later layout, or kept otherwise.
    """
    if options.id is not None and found.id != options.id:
        raise StoreMismatch(
            f"{where} is {found.id} ({found.name}), store.id asks for {options.id}: correct one of"
            " store.url and store.id"
        )
    if found.layout > LAYOUT:
        raise StoreMismatch(
            f"{where} has layout {found.layout}, this version reads up to {LAYOUT}: use the version"
            " that wrote it, or a later one"
        )
    if options.length > found.length:
        raise StoreMismatch(
            f"{where} keeps {found.length} behaviors per user, as it was made, store.length asks"
            f" for {options.length}: lower store.length, or fill a new store from Kafka or files"
        )
    return msgspec.structs.replace(
        found,
        layout=LAYOUT,
        ttl_s=options.ttl_s,
        actions=_actions(found.actions, options.actions, where),
    )


def require_any_id(options: StoreOptions, where: str) -> None:
    """Refuse a place where no identity was found: nothing is there, or a store of layout 1.

    Args:
        options: what it is opened with.
        where: names the place in errors.

    Raises:
        StoreMismatch: the settings ask for a certain store, and this is not it.
    """
    if options.id is not None:
        raise StoreMismatch(
            f"{where} has no id yet, store.id asks for {options.id}: correct store.url, or remove"
            " store.id, to have a store made there"
        )


def encode_identity(identity: Identity) -> bytes:
    """The record."""
    return msgspec.json.encode(identity)


def decode_identity(record: bytes, where: str) -> Identity:
    """The identity in a record.

    Raises:
        StoreCorrupt: it is none.
    """
    try:
        return msgspec.json.decode(record, type=Identity)
    except msgspec.DecodeError as error:
        raise StoreCorrupt(
            f"the identity of {where} cannot be read: {one_line(error)}; restore the store"
        ) from error


def _actions(found: tuple[str, ...], wanted: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The longer of two lists of names, of which one begins with the other."""
    short, long = sorted((found, wanted), key=len)
    if long[: len(short)] == short:
        return long
    place = next(i for i, (one, other) in enumerate(zip(short, long, strict=False)) if one != other)
    raise StoreMismatch(
        f"{where} has stored action {found[place]!r} under code {place + 1}, the settings name it"
        f" {wanted[place]!r}: names are only ever added at the end"
    )
