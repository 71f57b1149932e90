"""``POST /v2/models/{name}/infer``: the Open Inference Protocol (KServe V2), JSON and binary.

What the tensors are is in `scorer.inference`; here is how they are written over HTTP.

With the binary tensor extension a request of 3,000 keys and its answer cost a few microseconds
instead of some hundred. The protocol's layout is kept to the letter; the header
Inference-Header-Content-Length gives the length of the JSON that the tensors' bytes follow.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Annotated, Any, Final, NamedTuple, cast

import msgspec
import numpy as np

from infra.errors import RequestError
from scorer.inference import OUTPUTS, Inference, Inferred, Input, Output, Parameters
from scorer.limits import SHOWN_CHARS, Item, Time, User, decode_json
from scorer.ranking import Ranker

HEADER_LENGTH: Final = "inference-header-content-length"
"""Name of the HTTP header of the binary extension."""

NO_DATA: Final = msgspec.Raw(b"null")

Key = Annotated[int, msgspec.Meta(ge=0)]
Given = dict[str, Any]
"""Parameters as they come: other servers' and intermediaries' are let pass."""


class Base64(msgspec.Struct):
    """An element of BYTES in base64, as TensorFlow Serving and KServe V1 have it."""

    b64: str


class InputTensor(msgspec.Struct):
    """One input; its data is here or among the bytes after the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Given | None = None
    data: msgspec.Raw = msgspec.field(default_factory=lambda: NO_DATA)


class OutputWish(msgspec.Struct):
    """An output asked for."""

    name: str
    parameters: Given | None = None


class InferRequest(msgspec.Struct):
    """The JSON of a request. What may be left out may be null, and fields of others are ignored."""

    inputs: list[InputTensor]
    outputs: list[OutputWish] | None = None
    id: str | None = None
    parameters: Given | None = None


class IndexRequest(msgspec.Struct):
    """The JSON of a question for the models that there are."""

    ready: bool | None = None
    """Whether only for those that are ready."""


class OutputTensor(msgspec.Struct):
    """One output; its data is here or, with a ``binary_data_size``, after the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | msgspec.UnsetType = msgspec.UNSET
    data: list[float] | list[bool] | msgspec.UnsetType = msgspec.UNSET


class InferAnswer(msgspec.Struct):
    """The JSON of an answer."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    parameters: Parameters
    id: str | msgspec.UnsetType = msgspec.UNSET


class EncodedAnswer(NamedTuple):
    """An answer's body, and the length of its JSON where bytes follow that."""

    body: bytes
    header_length: int | None
    degraded: bool


class KServe:
    """Answers inference requests: the body of one becomes that of its answer. Thread-safe."""

    def __init__(self, max_candidates: int) -> None:
        self._inference = Inference(max_candidates)
        self._request = msgspec.json.Decoder(InferRequest)
        self._elements = {
            ("user", "BYTES"): _Elements(User, encoded=True),
            ("candidates", "BYTES"): _Elements(Item, encoded=True),
            ("candidates", "UINT64"): _Elements(Key),
            ("candidates", "INT64"): _Elements(int),
            ("time", "INT64"): _Elements(Time),
            ("time", "UINT64"): _Elements(Time),
        }
        self._index = msgspec.json.Decoder(IndexRequest)
        self._encoder = msgspec.json.Encoder()

    def answer(
        self, ranker: Ranker, body: bytes, header_length: str | None = None
    ) -> EncodedAnswer:
        """Score what a body asks for.

        Args:
            header_length: value of the header of that name; None: all is JSON.

        Raises:
            RequestError: the body is malformed or exceeds a limit, or holds candidates that are not
                known and not to be scored; names the field or tensor.
            StoreError: the store did not answer, and rankings are not to be degraded.
        """
        head, tail = _split(body, header_length)
        request = decode_json(self._request, head)
        wishes = [wish.name for wish in request.outputs or ()]
        inputs = self._inputs(request, tail)
        inferred = self._inference.infer(ranker, inputs, wishes, request.parameters)
        return self._encode(request, inferred)

    def wants_ready(self, body: bytes) -> bool:
        """Whether a question for the models leaves out those that are not ready."""
        return bool(body.strip()) and decode_json(self._index, body).ready is True

    def _inputs(self, request: InferRequest, tail: memoryview) -> Iterator[Input]:
        """The tensors, each with its bytes where it has some."""
        at = 0
        for tensor in request.inputs:
            size = (tensor.parameters or {}).get("binary_data_size")
            raw, elements = None, None
            name = tensor.name[:SHOWN_CHARS]
            if size is not None:
                if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                    raise RequestError(name, "has no valid binary_data_size")
                raw = tail[at : at + size]
                at += size
                if at > len(tail):
                    raise RequestError(name, f"announces {size} bytes that are not there")
            elif bytes(tensor.data) == b"null":
                raise RequestError(name, "has neither data nor a binary_data_size")
            else:
                elements = partial(self._read, tensor)
            yield Input(tensor.name, tensor.datatype, tensor.shape, raw, elements)
        if at != len(tail):
            raise RequestError("body", f"has {len(tail) - at} bytes after the last tensor")

    def _read(self, tensor: InputTensor) -> list[Any]:
        elements = self._elements[tensor.name, tensor.datatype]
        try:
            values = elements.read(bytes(tensor.data), tensor.shape)
            if (tensor.parameters or {}).get("content_type") == "base64":  # as MLServer has it
                values = [_decoded(value) for value in values]
        except RequestError as error:
            place = error.field if error.field.startswith("[") else ""
            raise RequestError(tensor.name + place, str(error)) from None
        return values

    def _encode(self, request: InferRequest, inferred: Inferred) -> EncodedAnswer:
        binary = _binary(request)
        identifier = msgspec.UNSET if request.id is None else request.id
        outputs, blobs = [], []
        for output in inferred.outputs:
            tensor = OutputTensor(output.name, output.shape, output.datatype)
            if binary[output.name]:
                blob = output.raw()
                tensor.parameters = {"binary_data_size": len(blob)}
                blobs.append(blob)
            else:
                tensor.data = _json_data(output)
            outputs.append(tensor)
        answer = InferAnswer(
            inferred.name, inferred.version, outputs, inferred.parameters, identifier
        )
        head = self._encoder.encode(answer)
        if not blobs:
            return EncodedAnswer(head, None, inferred.degraded)
        return EncodedAnswer(b"".join((head, *blobs)), len(head), inferred.degraded)


_NESTED: Final = re.compile(rb"\[\s*\[")


class _Elements:
    """Reads the data of a tensor in JSON, flat or a list for each row."""

    def __init__(self, kind: Any, *, encoded: bool = False) -> None:
        """Prepare for elements of a type.

        Args:
            encoded: whether they may come in base64.
        """
        self._flat = msgspec.json.Decoder(list[kind])
        self._rows = msgspec.json.Decoder(list[list[kind]])
        # Apart, since looking at the type of each costs as much as all the rest.
        self._encoded = msgspec.json.Decoder(list[kind | Base64]) if encoded else None

    def read(self, data: bytes, shape: list[int]) -> list[Any]:
        """The elements in a flat list."""
        if _NESTED.match(data):
            rows = decode_json(self._rows, data)
            if [len(row) for row in rows] != [shape[-1]] * shape[0]:
                raise RequestError("", f"has rows of other lengths than shape {shape} says")
            return list(chain.from_iterable(rows))
        if self._encoded is not None and b"{" in data:
            return [
                _decoded(value.b64) if isinstance(value, Base64) else value.encode()
                for value in decode_json(self._encoded, data)
            ]
        return decode_json(self._flat, data)


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise RequestError("", "holds what is not base64") from None


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """A body's JSON and the bytes that follow it."""
    if header_length is None:
        return body, memoryview(b"")
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 10:
        raise RequestError("Inference-Header-Content-Length", "is not a number of bytes")
    length = int(header_length)
    if length > len(body):
        raise RequestError(
            "Inference-Header-Content-Length", f"is {length}, the body has {len(body)} bytes"
        )
    return body[:length], memoryview(body)[length:]


def _binary(request: InferRequest) -> dict[str, bool]:
    """Whether each output goes out as bytes."""
    default = (request.parameters or {}).get("binary_data_output", False) is True
    wishes = dict.fromkeys(OUTPUTS, default)
    for wish in request.outputs or ():
        wishes[wish.name] = (wish.parameters or {}).get("binary_data", default) is True
    return wishes


def _json_data(output: Output) -> list[Any]:
    if output.datatype == "FP32":
        # A float32 holds no more than these digits of a rate, and each one costs time and bytes.
        return cast(list[Any], np.round(output.values.astype(np.float64), 9).tolist())
    return cast(list[Any], output.values.tolist())
