"""Secrets that settings hold themselves, or name a file of.

A secret that is set to ``file:/run/secrets/kafka-password`` is what that file holds, less the end
of its line. It is read whenever it is needed, so that a file that is exchanged (a Secret that
Kubernetes mounts, for example) counts from then on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import SecretStr

from infra.errors import SettingsError

FILE: Final = "file:"
"""What a setting begins with that names a file."""

MAX_BYTES: Final = 65_536
"""Of a file that holds a secret; a longer one is another kind of file."""


def read_secret(name: str, secret: SecretStr) -> str:
    """A secret itself, of a setting by that name.

    Raises:
        SettingsError: its file cannot be read, or is no text of one line. What is in it is not
            told.
    """
    try:
        return resolve(secret.get_secret_value())
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from None


def resolve(value: str) -> str:
    """What a setting means: what is in the file that it names, or itself.

    Raises:
        SettingsError: as `read_secret`, without the setting's name.

    >>> resolve("secret")
    'secret'
    """
    if not value.startswith(FILE):
        return value
    path = Path(value.removeprefix(FILE))
    try:
        with path.open("rb") as file:
            held = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror}): correct it, or its permissions"
        ) from None
    try:
        text = held.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or "\n" in text or len(held) > MAX_BYTES:
        raise SettingsError(f"{path} must hold one line of text, the secret alone")
    return text
