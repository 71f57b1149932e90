"""A token server for tests: it gives clients JSON Web Tokens that live for seconds, over HTTP."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.certificates import Pair

AUDIENCE = "kafka"


class TokenServer:
    """What the server knows: its clients' secrets, and how long a token lives."""

    def __init__(self) -> None:
        self.clients = {"lifelong": "right", "stranger": "right"}
        self.lifetime_s = 3600
        self.given: list[dict[str, Any]] = []
        """What each token was asked for with: the form's fields."""
        self.answer: tuple[int, bytes] | None = None
        """What it answers to whoever asks for a token; None: a token."""
        self.audience = AUDIENCE
        self.url = self.tls_url = ""
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, client: str) -> str:
        now = time.time()
        claims = {
            "sub": client,
            "aud": self.audience,
            "iss": self.url,
            "iat": now,
            "exp": now + self.lifetime_s,
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": "one"})

    def keys(self) -> bytes:
        """As a JSON Web Key Set."""
        key = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**key, "kid": "one", "alg": "RS256", "use": "sig"}]}).encode()

    def answer_to(self, authorization: str, form: dict[str, list[str]]) -> tuple[int, bytes]:
        if self.answer is not None:
            return self.answer
        scheme, _, encoded = authorization.partition(" ")
        client, _, secret = base64.b64decode(encoded).decode().partition(":")
        client, secret = unquote_plus(client), unquote_plus(secret)
        if scheme != "Basic" or self.clients.get(client) != secret:
            told = {"error": "invalid_client", "error_description": "no client by this secret"}
            return 401, json.dumps(told).encode()
        self.given.append({name: values[0] for name, values in form.items()})
        token: dict[str, Any] = {
            "access_token": self.token(client),
            "token_type": "Bearer",
            "expires_in": self.lifetime_s,
        }
        return 200, json.dumps(token).encode()


@contextmanager
def token_server(pair: Pair | None = None) -> Iterator[TokenServer]:
    """A token server on 127.0.0.1, for as long as it is needed; with a pair, over TLS as well."""
    server = TokenServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, server.keys())

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._send(*server.answer_to(self.headers.get("Authorization", ""), form))

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Handler) as port:
        server.url = f"http://127.0.0.1:{port}"
        if pair is None:
            yield server
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        with _serving(Handler, context) as guarded:
            server.tls_url = f"https://127.0.0.1:{guarded}"
            yield server


@contextmanager
def _serving(
    handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None
) -> Iterator[int]:
    """A server, by its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        if context is not None:
            http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield http.server_port
        finally:
            http.shutdown()
            thread.join()
