"""The Open Inference Protocol over gRPC: its form for clients, and ways over one channel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import DecodeError

from infra.errors import one_line
from scorer.client.address import Address, Tls
from scorer.client.errors import ScorerError, ScorerUnavailable, too_late, untrusted
from scorer.client.exchange import Call, Reply, left
from scorer.client.kserve import OpenInference, Tensor, Told
from scorer.grpc import open_inference_pb2 as pb

SERVICE: Final = "/inference.GRPCInferenceService/"

PUSHBACK: Final = "grpc-retry-pushback-ms"
"""The trailer by which a scorer says when to try again."""

STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    grpc.StatusCode.DEADLINE_EXCEEDED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
}
"""gRPC's statuses as HTTP has them; others are a fault of the scorer."""

OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Retries are the client's own (`scorer.client.retries`), as over HTTP.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    # Otherwise a second client of the same scorer would share the connection of the first.
    ("grpc.use_local_subchannel_pool", 1),
    # A scorer that is there again is not kept waiting for as long as gRPC does by itself.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class Messages(OpenInference):
    """The form of ``ModelInfer``, tensors raw."""

    def index(self) -> Call:
        return Call(f"{SERVICE}RepositoryIndex", b"")

    def indexed(self, reply: Reply) -> list[str]:
        return [model.name for model in _parsed(pb.RepositoryIndexResponse, reply).models]

    def _written(self, tensors: Sequence[Tensor], parameters: dict[str, str], model: str) -> Call:
        request = pb.ModelInferRequest(
            model_name=model, raw_input_contents=[tensor.raw for tensor in tensors]
        )
        for tensor in tensors:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        for name, value in parameters.items():
            request.parameters[name].string_param = value
        return Call(f"{SERVICE}ModelInfer", request.SerializeToString())

    def _read(self, reply: Reply) -> Told:
        answer = _parsed(pb.ModelInferResponse, reply)
        names = [output.name for output in answer.outputs]
        parameters = {
            name: getattr(value, choice)
            for name, value in answer.parameters.items()
            if (choice := value.WhichOneof("parameter_choice")) is not None
        }
        raw = dict(zip(names, answer.raw_output_contents, strict=False))
        return Told(answer.model_name, answer.model_version, raw, parameters)


class GrpcWay:
    """A way over gRPC, blocking. May be used from several threads."""

    def __init__(self, address: Address, shown: dict[str, str], tls: Tls, timeout_s: float) -> None:
        self._ending = _Ending(address.url, timeout_s)
        self._metadata = tuple(shown.items())
        if address.secure:
            credentials = _credentials(tls)
            self._channel = grpc.secure_channel(address.authority, credentials, OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.authority, OPTIONS)

    def exchange(self, call: Call, deadline: float) -> Reply:
        try:
            ask: Callable[..., bytes] = self._channel.unary_unary(call.path)
            body = ask(call.body, timeout=left(deadline), metadata=self._metadata)
        except TimeoutError:
            raise self._ending.late from None
        except grpc.RpcError as error:
            return self._ending.reply(error, deadline)
        return Reply(200, body)

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcWay:
    """A way over gRPC with asyncio; one event loop's."""

    def __init__(self, address: Address, shown: dict[str, str], tls: Tls, timeout_s: float) -> None:
        self._address = address
        self._ending = _Ending(address.url, timeout_s)
        self._metadata = tuple(shown.items())
        self._credentials = _credentials(tls) if address.secure else None
        self._channel: grpc.aio.Channel | None = None

    async def exchange(self, call: Call, deadline: float) -> Reply:
        channel = self._channel
        if channel is None:  # which takes the event loop that runs
            channel = self._channel = self._opened()
        try:
            ask: Callable[..., Any] = channel.unary_unary(call.path)
            body = await ask(call.body, timeout=left(deadline), metadata=self._metadata)
        except TimeoutError:
            raise self._ending.late from None
        except grpc.aio.AioRpcError as error:
            return self._ending.reply(error, deadline)
        return Reply(200, body)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _opened(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address.authority, OPTIONS)
        return grpc.aio.secure_channel(self._address.authority, self._credentials, OPTIONS)


class _Ending:
    """What becomes of calls that have no answer."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s

    @property
    def late(self) -> ScorerUnavailable:
        return too_late(self._url, self._timeout_s)

    def reply(self, error: Any, deadline: float) -> Reply:
        """The scorer's refusal; raises where it was not the scorer that ended the call."""
        code, detail = error.code(), one_line(error.details() or "")
        pushback = dict(error.trailing_metadata() or ()).get(PUSHBACK)
        if pushback is None:
            if code is grpc.StatusCode.DEADLINE_EXCEEDED or time.monotonic() >= deadline:
                raise self.late
            if code is grpc.StatusCode.UNAVAILABLE:
                if "handshake failed" in detail:
                    raise untrusted(self._url, detail.rpartition(":")[2].strip())
                raise ScorerUnavailable(
                    f"{self._url} cannot be reached: {detail}; is a scorer running?"
                )
        status = STATUSES.get(code, 500)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and pushback is not None:
            status = 429
        retry_after_s = None if pushback is None else float(pushback) / 1000
        return Reply(status, msgspec.json.encode({"error": detail}), retry_after_s)


def _parsed(kind: Any, reply: Reply) -> Any:
    try:
        return kind.FromString(reply.body)
    except DecodeError as error:
        raise ValueError(str(error)) from None


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    tls.context()  # which says what is wrong with the files
    certificate, key = tls.certificate, tls.key or tls.certificate
    return grpc.ssl_channel_credentials(_read(tls.ca), _read(key), _read(certificate))


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ScorerError(
            f"{path}: cannot be read ({error.strerror}); name a file in PEM"
        ) from None
