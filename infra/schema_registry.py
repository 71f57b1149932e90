"""The Schema Registry that records in Avro, Protobuf and JSON Schema name their schemas by.

Asked with confluent-kafka's own client, which goes on to the next URL where one does not answer.
What is told apart here is what matters to whoever reads records: that there is no such schema, and
that the registry cannot say.
"""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from infra.errors import RegistryUnavailable, SchemaUnknown, SettingsError, one_line
from infra.settings import RegistrySettings

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

SchemaId = int | uuid.UUID
"""What a record names its schema by: the id in its frame, or the GUID in a header."""

OUTCOMES: Final = ("found", "unknown", "failed")
"""What becomes of a question."""

RETRIES: Final = 2
"""Of a request that was answered with an error that may pass; whoever needs the answer asks again
after that, with pauses of its own."""
RETRY_MS: Final = 100

_NOT_FOUND: Final = {40401, 40402, 40403}
"""Codes of the registry for no such subject, version, schema. A bare 404 is another server's, or
another path's."""

_HINTS: Final = {
    401: "check registry.username and its password, or registry.token_file",
    403: "whoever registry.username is may not read schemas",
    404: "is it a Schema Registry? Some answer below a path, as in http://HOST:PORT/apis/ccompat/v7",
}

T = TypeVar("T")


class SchemaRegistry:
    """Schemas by their ids. Whoever needs one again keeps it: each call is a question.

    A question has a client of its own: there are few, nothing is left open between them, and files
    (passwords, tokens, certificates) are read as they are by then.

    Args:
        settings: where it is, and how to enter.
        count: called with what became of each question that the registry was asked, of `OUTCOMES`.
    """

    def __init__(
        self, settings: RegistrySettings, count: Callable[[str], object] = lambda _: None
    ) -> None:
        self._settings = settings
        self._count = count

    def require(self, whose: str) -> None:
        """See to it that it can be asked; nothing is asked yet.

        Args:
            whose: what needs it, for people.

        Raises:
            SettingsError: there is no URL, a file cannot be read, or the client is not installed.
        """
        if self._settings.url is None:
            raise SettingsError(f"registry.url is not set; {whose} needs a Schema Registry")
        try:
            with warnings.catch_warnings(record=True):  # its OAuth library's, of an httpx to come
                import confluent_kafka.schema_registry  # noqa: F401
        except ImportError as error:
            raise SettingsError(
                f"{whose} needs the packages of the extra registry ({one_line(error)});"
                " pip install 'lifelong[registry]'"
            ) from None
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else it tells of each request
        try:
            with self._client():
                pass
        except (OSError, ValueError) as error:
            raise SettingsError(f"registry: {one_line(error)}") from None

    def schema(self, key: SchemaId, *, serialized: bool = False) -> Schema:
        """The schema with an id.

        Args:
            key: its id or GUID.
            serialized: whether it is wanted as Protobuf's descriptor, base64, instead of text.

        Raises:
            SchemaUnknown: there is none.
            RegistryUnavailable: it does not answer, or not as a registry would.
        """
        form = _form(serialized)
        if isinstance(key, int):
            return self._ask(lambda client: client.get_schema(key, fmt=form))
        return self._ask(lambda client: client.get_schema_by_guid(str(key), fmt=form))

    def version(self, subject: str, version: int, *, serialized: bool = False) -> Schema:
        """The schema that is a version of a subject, deleted or not; as `schema`."""
        form = _form(serialized)
        return self._ask(
            lambda client: client.get_version(subject, version, deleted=True, fmt=form)
        ).schema

    def subjects(self) -> list[str]:
        """The subjects that schemas are registered under; raises as `schema` does."""
        return self._ask(lambda client: client.get_subjects())

    def _client(self) -> SchemaRegistryClient:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        return SchemaRegistryClient(_configuration(self._settings))

    def _ask(self, call: Callable[[SchemaRegistryClient], T]) -> T:
        import httpx
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            with self._client() as client:
                found = call(client)
        except SchemaRegistryError as error:
            if error.http_status_code == 404 and error.error_code in _NOT_FOUND:
                self._count("unknown")
                raise SchemaUnknown(one_line(error.error_message)) from None
            self._count("failed")
            told = f"answers {error.http_status_code} ({one_line(error.error_message, 120)})"
            if error.http_status_code in _HINTS:
                told += f"; {_HINTS[error.http_status_code]}"
        except (httpx.HTTPError, OSError, SettingsError) as error:
            self._count("failed")
            told = f"cannot be reached: {type(error).__name__}: {one_line(error)}"
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # of what is no registry
            self._count("failed")
            told = f"does not answer as a registry would: {one_line(error)}"
        else:
            self._count("found")
            return found
        raise RegistryUnavailable(f"the Schema Registry at {self._settings.url} {told}")


def _form(serialized: bool) -> str | None:
    return "serialized" if serialized else None


def _configuration(settings: RegistrySettings) -> dict[str, object]:
    """What the client is told."""
    chosen: dict[str, object] = {
        "url": settings.url,
        "timeout": settings.timeout_s,
        "max.retries": RETRIES,
        "retries.wait.ms": RETRY_MS,
    }
    if settings.username is not None:
        chosen["basic.auth.user.info"] = f"{settings.username}:{settings.secret('password')}"
    if settings.token is not None or settings.token_file is not None:
        chosen |= {
            "bearer.auth.credentials.source": "STATIC_TOKEN",
            "bearer.auth.token": settings.secret("token"),
            "bearer.auth.logical.cluster": settings.cluster,
            "bearer.auth.identity.pool.id": settings.identity_pool,
        }
    files = {
        "ssl.ca.location": settings.ca_file,
        "ssl.certificate.location": settings.cert_file,
        "ssl.key.location": settings.key_file,
    }
    return chosen | {name: str(path) for name, path in files.items() if path is not None}
