"""A Schema Registry for tests: an HTTP server that speaks its REST API, over a real socket.

It knows what producers' serializers and consumers ask for: subjects, versions, schemas by id and by
GUID, references. A test may have it refuse, fail or take its time, as registries do.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

SCHEMA_NOT_FOUND = 40403
VERSION_NOT_FOUND = 40402
SUBJECT_NOT_FOUND = 40401


class RegistryDouble:
    """What is registered, what was asked for, and how the next requests are answered."""

    def __init__(self, scheme: str = "http") -> None:
        self.scheme = scheme
        self.port = 0
        self.asked: list[str] = []
        """Paths of the requests so far, with their queries."""
        self.fails_with: int | None = None
        """The status with which everything is answered; None: as it should be."""
        self.takes_s = 0.0
        """Time before each answer."""
        self.wants: str | None = None
        """What a request must say in its Authorization; None: nothing."""
        self.schemas: list[dict[str, Any]] = []
        """By id, from 1."""
        self.versions: dict[str, list[int]] = {}
        """Of each subject, the schemas' ids."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def wants_password(self, user: str, password: str) -> None:
        """Refuse whoever does not say these."""
        self.wants = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def register(self, subject: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Register a schema under a subject, or find it."""
        body = {
            "schema": schema["schema"],
            "schemaType": schema.get("schemaType", "AVRO"),
            "references": schema.get("references") or [],
        } | ({"ruleSet": schema["ruleSet"]} if schema.get("ruleSet") else {})
        if body not in self.schemas:
            self.schemas.append(body)
        number = self.schemas.index(body) + 1
        versions = self.versions.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return self.registered(subject, number)

    def registered(self, subject: str, number: int) -> dict[str, Any]:
        """A schema as a version of its subject."""
        version = self.versions[subject].index(number) + 1
        named = {"subject": subject, "version": version, "id": number, "guid": guid_of(number)}
        return named | self.schemas[number - 1]

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, object]:
        """The answer to a request: status, and what becomes its body."""
        match method, [urllib.parse.unquote(part) for part in path.strip("/").split("/")]:
            case "GET", ["subjects"]:
                return HTTPStatus.OK, list(self.versions)
            case "GET", ["schemas", "types"]:
                return HTTPStatus.OK, ["JSON", "PROTOBUF", "AVRO"]
            case "GET", ["schemas", "ids", number]:
                return self._schema(int(number))
            case "GET", ["schemas", "guids", guid]:
                numbers = (n for n in range(1, len(self.schemas) + 1) if guid_of(n) == guid)
                return self._schema(next(numbers, 0))
            case "GET", ["subjects", subject, "versions"] if subject in self.versions:
                return HTTPStatus.OK, list(range(1, len(self.versions[subject]) + 1))
            case "GET", ["subjects", subject, "versions", version] if subject in self.versions:
                numbers_of = self.versions[subject]
                place = len(numbers_of) if version == "latest" else int(version)
                if not 1 <= place <= len(numbers_of):
                    return _missing(VERSION_NOT_FOUND, "Version not found.")
                return HTTPStatus.OK, self.registered(subject, numbers_of[place - 1])
            case "POST", ["subjects", subject, "versions"]:
                return HTTPStatus.OK, self.register(subject, body)
            case "POST", ["subjects", subject] if subject in self.versions:
                return HTTPStatus.OK, self.register(subject, body)
            case _, ["subjects", subject, *_]:
                return _missing(SUBJECT_NOT_FOUND, f"Subject '{subject}' not found.")
            case _:
                return _missing(404, "HTTP 404 Not Found")

    def _schema(self, number: int) -> tuple[int, object]:
        if not 1 <= number <= len(self.schemas):
            return _missing(SCHEMA_NOT_FOUND, f"Schema {number} not found")
        return HTTPStatus.OK, {"guid": guid_of(number)} | self.schemas[number - 1]


def guid_of(number: int) -> str:
    """The GUID of the schema with an id."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(number)))


def _missing(code: int, message: str) -> tuple[int, object]:
    return HTTPStatus.NOT_FOUND, {"error_code": code, "message": message}


@contextmanager
def registry_double(tls: ssl.SSLContext | None = None) -> Iterator[RegistryDouble]:
    """A registry that listens while this is entered, over TLS where that is given."""
    double = RegistryDouble("http" if tls is None else "https")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            double.asked.append(self.path)
            time.sleep(double.takes_s)
            if double.wants is not None and self.headers.get("authorization") != double.wants:
                answer: tuple[int, object] = 401, {"error_code": 40101, "message": "Unauthorized"}
            elif double.fails_with is not None:
                answer = double.fails_with, {"error_code": 50001, "message": "store is away"}
            else:
                path = urllib.parse.urlsplit(self.path).path
                answer = double.answer(self.command, path, json.loads(body or "{}"))
            content = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815 - as http.server calls them

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        double.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield double
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def registry() -> Iterator[RegistryDouble]:
    """A Schema Registry for one test."""
    with registry_double() as double:
        yield double
