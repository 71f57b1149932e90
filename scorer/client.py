"""Clients of the scorer, blocking and asyncio, over one small HTTP/1.1 codec.

A ranking takes the server one or two milliseconds; a general HTTP client would add half of that
again. So these speak to a socket directly and keep it open between requests.

    ScorerError                what the scorer or the way to it did wrong
    └── ScorerUnavailable      not reachable, overloaded or not ready: try again later
    infra.errors.RequestError  what the request did wrong; names the field

Each request tells how much time is left for it, so that a scorer does not work on what nobody waits
for any more. A client tries again only if told to (`Retries`), within that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Final, Self, TypeAlias
from urllib.parse import urlsplit

import httptools
import msgspec

from infra.errors import LifelongError, RequestError
from infra.settings import UnknownItems
from scorer.messages import RankAnswer, RankRequest

TIMEOUT_S: Final = 5.0
"""Default for a whole request, connecting included."""

IDLE_CONNECTIONS: Final = 16
"""How many connections a client keeps open for later requests."""

TIME_LEFT: Final = "x-envoy-expected-rq-timeout-ms"
"""Header by which a request says for how many milliseconds its answer is of use, the one of a proxy
that puts it on, too."""

TRY_LATER: Final = frozenset({429, 503})
"""Statuses by which a scorer, or a proxy before it, says that it has too much to do."""

RECEIVE_BYTES: Final = 262_144
"""One read takes a whole answer of some thousand candidates."""


class ScorerError(LifelongError):
    """The scorer failed, or what answered is not a scorer.

    Attributes:
        status: HTTP status of its answer; 0: there was none, or it was no ranking.
    """

    status: int = 0


class ScorerUnavailable(ScorerError):
    """The scorer cannot be reached, is overloaded or not ready; try again later.

    Attributes:
        retry_after_s: when, if the scorer said so.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Retries:
    """When a client asks again what a scorer could not answer now."""

    most: int = 2
    """Times that one request is asked again, at most."""
    share: float = 0.1
    """Retries for each request, in the long run: where many fail, asking all of them again would be
    the load that keeps the scorers down."""
    saved: float = 10.0
    """Retries that may come at once after a time without any."""
    pause_s: float = 0.05
    """Pause before the first, doubled with each further one, where the scorer names none."""


NO_RETRIES: Final = Retries(most=0)


class RankClient:
    """Asks a scorer for rankings, blocking. May be used from several threads.

    with RankClient("http://127.0.0.1:8080") as client:
        ranking = client.rank("17850", ["85123A", "22423"], top_k=1)
        print(ranking.items[0].item, ranking.items[0].ctr)
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = NO_RETRIES,
        *,
        key: str | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            timeout_s: for a whole request, with all its retries.
            retries: whether and when to ask again.
            key: the API key, or token, to ask with; None: none.
        """
        self._codec = _Codec(url, key)
        self._timeout_s = timeout_s
        self._budget = _Budget(retries)
        self._idle: list[socket.socket] = []

    def rank(
        self,
        user: str,
        candidates: Sequence[str],
        top_k: int | None = None,
        time_ms: int | None = None,
        unknown_items: UnknownItems | None = None,
        explain: bool | int = False,
    ) -> RankAnswer:
        """Rank the candidates, by falling CTR.

        Args:
            candidates: item ids.
            top_k: how many of the highest; None: all.
            time_ms: the moment for which to score, ms since epoch; None: now.
            unknown_items: what becomes of candidates that the bundle does not know; None: what the
                scorer's settings say.
            explain: whether to tell why the highest are the highest, or of how many of them.

        Raises:
            RequestError: the scorer refused the request; names the field.
            ScorerUnavailable: it cannot be reached, is overloaded or not ready.
            ScorerError: it failed.
        """
        body = self._codec.rank_request(
            RankRequest(user, list(candidates), top_k, time_ms, unknown_items, explain)
        )
        deadline = time.monotonic() + self._timeout_s
        tried = self._budget.begin()
        while True:
            try:
                return self._codec.ranking(self._exchange(body, deadline))
            except ScorerUnavailable as error:
                pause_s = self._budget.pause_s(next(tried), error, deadline)
                if pause_s is None:
                    raise
            time.sleep(pause_s)

    def close(self) -> None:
        """Close the connections that are open."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _exchange(self, body: bytes, deadline: float) -> _Response:
        try:
            while True:
                connection, reused = self._connection(deadline)
                response = _Response()
                try:
                    request = self._codec.request(body, _left(deadline))
                    self._send_and_receive(connection, request, response, deadline)
                except TimeoutError:
                    connection.close()
                    raise
                except OSError:
                    connection.close()
                    # A server may close an idle connection just as it is used again. Ranking
                    # changes nothing, so asking twice does no harm.
                    if reused and not response.begun:
                        continue
                    raise
                except BaseException:
                    connection.close()
                    raise
                self._keep(connection, response)
                return response
        except OSError as error:
            raise self._codec.unavailable(error, self._timeout_s) from error

    def _connection(self, deadline: float) -> tuple[socket.socket, bool]:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self._idle.pop(), True
        connection = socket.create_connection(self._codec.address, _left(deadline))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._codec.tls is not None:
            connection = self._codec.tls.wrap_socket(
                connection, server_hostname=self._codec.address[0]
            )
        return connection, False

    def _send_and_receive(
        self, connection: socket.socket, request: bytes, response: _Response, deadline: float
    ) -> None:
        connection.settimeout(_left(deadline))
        connection.sendall(request)
        while not response.complete:
            connection.settimeout(_left(deadline))
            response.feed(connection.recv(RECEIVE_BYTES))

    def _keep(self, connection: socket.socket, response: _Response) -> None:
        if response.keep_alive and len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()


class AsyncRankClient:
    """Asks a scorer for rankings, with asyncio; as `RankClient` otherwise. One event loop's."""

    def __init__(
        self,
        url: str,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = NO_RETRIES,
        *,
        key: str | None = None,
    ) -> None:
        """Connect to nothing yet; arguments are those of `RankClient`."""
        self._codec = _Codec(url, key)
        self._timeout_s = timeout_s
        self._budget = _Budget(retries)
        self._idle: list[_Streams] = []

    async def rank(
        self,
        user: str,
        candidates: Sequence[str],
        top_k: int | None = None,
        time_ms: int | None = None,
        unknown_items: UnknownItems | None = None,
        explain: bool | int = False,
    ) -> RankAnswer:
        """Rank the candidates; arguments, result and errors are those of `RankClient.rank`."""
        body = self._codec.rank_request(
            RankRequest(user, list(candidates), top_k, time_ms, unknown_items, explain)
        )
        deadline = time.monotonic() + self._timeout_s
        tried = self._budget.begin()
        while True:
            try:
                return self._codec.ranking(await self._exchange(body, deadline))
            except ScorerUnavailable as error:
                pause_s = self._budget.pause_s(next(tried), error, deadline)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close the connections that are open."""
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _exchange(self, body: bytes, deadline: float) -> _Response:
        try:
            async with asyncio.timeout(_left(deadline)):
                return await self._tried(body, deadline)
        except OSError as error:  # of which TimeoutError is one
            raise self._codec.unavailable(error, self._timeout_s) from error

    async def _tried(self, body: bytes, deadline: float) -> _Response:
        while True:
            streams, reused = await self._connection()
            reader, writer = streams
            response = _Response()
            try:
                writer.write(self._codec.request(body, _left(deadline)))
                while not response.complete:
                    response.feed(await reader.read(RECEIVE_BYTES))
            except OSError:
                writer.close()
                if reused and not response.begun:  # as in RankClient
                    continue
                raise
            except BaseException:
                writer.close()
                raise
            if response.keep_alive and len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(streams)
            else:
                writer.close()
            return response

    async def _connection(self) -> tuple[_Streams, bool]:
        if self._idle:
            return self._idle.pop(), True
        host, port = self._codec.address
        return await asyncio.open_connection(host, port, ssl=self._codec.tls), False


_Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Budget:
    """What a client may yet ask again. May be used from several threads."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._saved = retries.saved
        self._changing = threading.Lock()

    def begin(self) -> Iterator[int]:
        """Note a new request; gives how often it was asked again, each time it failed."""
        if self._retries.most:
            with self._changing:
                self._saved = min(self._saved + self._retries.share, self._retries.saved)
        return count()

    def pause_s(self, again: int, error: ScorerUnavailable, deadline: float) -> float | None:
        """Seconds to wait before asking again; None: do not.

        Args:
            again: how often this request was asked again already.
            error: what came of the last time.
            deadline: until when the answer is of use, by the monotonic clock.
        """
        if again >= self._retries.most:
            return None
        pause_s = error.retry_after_s
        if pause_s is None:
            pause_s = self._retries.pause_s * 2**again
        # Of many that were refused at once, not all come again at once.
        pause_s *= random.uniform(1.0, 1.5)
        if time.monotonic() + pause_s >= deadline:
            return None
        with self._changing:
            if self._saved < 1:
                return None
            self._saved -= 1
        return pause_s


class _Codec:
    """Turns requests into bytes, and responses into rankings or errors."""

    def __init__(self, url: str, key: str | None) -> None:
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key):
            raise ScorerError("the key may have printable ASCII alone, and no space around it")
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ScorerError(f"{url!r} is not the URL of a scorer; use http://HOST:PORT")
        self.url = url
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        try:
            self.address = (parts.hostname, parts.port or (443 if self.tls else 80))
        except ValueError:
            raise ScorerError(f"{url!r} has no valid port; use http://HOST:PORT") from None
        host = parts.netloc.rpartition("@")[2]
        shown = "" if key is None else f"Authorization: Bearer {key}\r\n"
        self._head = (
            f"POST {parts.path.rstrip('/')}/v1/rank HTTP/1.1\r\n"
            f"Host: {host}\r\nContent-Type: application/json\r\n"
            f"{shown}{TIME_LEFT}: "
        ).encode()
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(RankAnswer)

    def rank_request(self, request: RankRequest) -> bytes:
        try:
            return self._encoder.encode(request)
        except UnicodeEncodeError:
            raise RequestError("body", "holds text that is not valid Unicode") from None

    def request(self, body: bytes, left_s: float) -> bytes:
        """A request with a body, whose answer is of use for so many seconds."""
        left_ms = max(1, int(left_s * 1000))
        return b"%b%d\r\nContent-Length: %d\r\n\r\n%b" % (self._head, left_ms, len(body), body)

    def ranking(self, response: _Response) -> RankAnswer:
        """The ranking in a response, or the error in it as an exception."""
        if response.status != 200:
            raise self._refusal(response)
        try:
            return self._decoder.decode(response.body)
        except msgspec.DecodeError as error:
            raise ScorerError(f"{self.url} answered with no ranking: {error}") from None

    def unavailable(self, error: OSError, timeout_s: float) -> ScorerUnavailable:
        if isinstance(error, TimeoutError):
            return ScorerUnavailable(f"{self.url} has not answered within {timeout_s:g} s")
        what = error.strerror or str(error) or type(error).__name__
        return ScorerUnavailable(f"{self.url} cannot be reached: {what}; is a scorer running?")

    def _refusal(self, response: _Response) -> LifelongError:
        field, detail = told(response.status, response.body)
        error: RequestError | ScorerError
        if response.status in TRY_LATER:
            error = ScorerUnavailable(f"{self.url}: {detail}", response.retry_after_s)
        elif 400 <= response.status < 500:
            error = RequestError(field, detail)
        else:
            error = ScorerError(f"{self.url} failed ({response.status}): {detail}")
        error.status = response.status
        return error


def told(status: int, body: bytes) -> tuple[str, str]:
    """The field that an answer finds wrong, and what it says in a sentence, in either protocol.

    >>> told(400, b'{"detail": "user is missing", "field": "user", "status": 400}')
    ('user', 'user is missing')
    >>> told(400, b'{"error": "user is missing"}')
    ('request', 'user is missing')
    >>> told(502, b"<html>")
    ('request', 'status 502')
    """
    try:
        said = msgspec.json.decode(body, type=_Told)
    except msgspec.DecodeError:
        said = _Told()
    return said.field, said.detail or said.error or f"status {status}"


class _Told(msgspec.Struct):
    """What of a problem's details, or of an error of Open Inference, becomes an exception."""

    field: str = "request"
    detail: str = ""
    error: str = ""


class _Response:
    """One HTTP response as it comes in. The methods named on_* are called by the parser."""

    def __init__(self) -> None:
        self.begun = False
        self.complete = False
        self.keep_alive = False
        self.status = 0
        self.retry_after_s: float | None = None
        self._chunks: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    @property
    def body(self) -> bytes:
        return b"".join(self._chunks)

    def feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionResetError("the connection was closed before the answer was complete")
        self.begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionError(f"what came back is not HTTP ({error})") from None

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.isdigit():
            self.retry_after_s = float(value)

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.keep_alive = self._parser.should_keep_alive()
        self.complete = True


def _left(deadline: float) -> float:
    """Seconds until the deadline; raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
