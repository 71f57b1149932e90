"""The Open Inference Protocol as a client writes and reads it: what its transports share, and its
form over HTTP, JSON with the tensors' bytes behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from infra.arrays import Array
from infra.errors import RequestError
from scorer.client.exchange import Call, Reply
from scorer.client.scores import Asked, Scores, ranking_of
from scorer.messages import AsOf, OutcomesAnswer, OutcomesRequest, RankAnswer, RankRequest

LENGTHS: Final = [length.to_bytes(4, "little") for length in range(257)]
"""What stands before an element of BYTES; a longer id is refused anyway."""

HEADER_LENGTH: Final = "inference-header-content-length"


class Tensor(NamedTuple):
    """An input."""

    name: str
    datatype: str
    shape: list[int]
    raw: bytes


class Told(NamedTuple):
    """An answer, whatever brought it."""

    model: str
    version: str
    raw: Mapping[str, bytes | memoryview]
    """Of the outputs, by their names."""
    parameters: Mapping[str, Any]


class OpenInference(ABC):
    """What the transports of the protocol share. Thread-safe."""

    names_model = True

    @abstractmethod
    def _written(self, tensors: Sequence[Tensor], parameters: dict[str, str], model: str) -> Call:
        """A question of tensors."""

    @abstractmethod
    def _read(self, reply: Reply) -> Told:
        """An answer with tensors."""

    def rank(self, request: RankRequest, model: str) -> Call:
        if request.explain:
            raise RequestError("explain", 'explain goes with protocol "json"')
        if request.top_k is not None and request.top_k < 1:
            raise RequestError("top_k", f"top_k is {request.top_k}, expected at least 1")
        return self.score(Asked.of(request), model)

    def ranking(self, request: RankRequest, reply: Reply) -> RankAnswer:
        return ranking_of(request, self.scores(Asked.of(request), reply))

    def score(self, asked: Asked, model: str) -> Call:
        parameters: dict[str, str] = {}
        if asked.unknown_items is not None:
            parameters["unknown_items"] = asked.unknown_items
        return self._written(_tensors(asked), parameters, model)

    def scores(self, asked: Asked, reply: Reply) -> Scores:
        told = self._read(reply)
        said = told.parameters
        epoch, count = said.get("as_of_epoch"), said.get("as_of_count")
        try:
            ctrs = np.frombuffer(told.raw["ctr"], "<f4").reshape(asked.shape)
            unknown = np.frombuffer(told.raw["unknown"], np.bool_).reshape(asked.shape)
        except KeyError as error:
            raise ValueError(f"the output {error} is missing") from None
        return Scores(
            told.model,
            told.version,
            ctrs,
            unknown,
            int(said.get("newer", 0)),
            bool(said.get("degraded", False)),
            said.get("history"),
            None if epoch is None or count is None else AsOf(epoch, count),
        )

    def outcomes(self, request: OutcomesRequest) -> Call:  # noqa: ARG002
        raise RequestError("outcomes", 'outcomes go with protocol "json"')

    def counted(self, reply: Reply) -> OutcomesAnswer:
        raise NotImplementedError


class Binary(OpenInference):
    """The form of ``/v2/models/NAME/infer`` with the binary tensor extension."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(_Answer)
        self._models = msgspec.json.Decoder(list[_Model])

    def index(self) -> Call:
        return Call("/v2/repository/index", b"{}", {"content-type": "application/json"})

    def indexed(self, reply: Reply) -> list[str]:
        return [model.name for model in self._models.decode(reply.body)]

    def _written(self, tensors: Sequence[Tensor], parameters: dict[str, str], model: str) -> Call:
        inputs = [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.shape,
                "parameters": {"binary_data_size": len(tensor.raw)},
            }
            for tensor in tensors
        ]
        head = self._encoder.encode(
            {"inputs": inputs, "parameters": {"binary_data_output": True, **parameters}}
        )
        return Call(
            f"/v2/models/{model}/infer",
            b"".join((head, *(tensor.raw for tensor in tensors))),
            {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))},
        )

    def _read(self, reply: Reply) -> Told:
        if reply.header_length is None:
            raise ValueError("its tensors are not in bytes")
        answer = self._decoder.decode(reply.body[: reply.header_length])
        raw: dict[str, memoryview] = {}
        rest = memoryview(reply.body)[reply.header_length :]
        for output in answer.outputs:
            size = output.parameters.binary_data_size
            raw[output.name], rest = rest[:size], rest[size:]
        return Told(answer.model_name, answer.model_version, raw, answer.parameters)


class _Size(msgspec.Struct):
    binary_data_size: int


class _Output(msgspec.Struct):
    name: str
    parameters: _Size


class _Answer(msgspec.Struct):
    model_name: str
    model_version: str
    outputs: list[_Output]
    parameters: dict[str, Any]


class _Model(msgspec.Struct):
    name: str


def framed(ids: Iterable[str], field: str) -> bytes:
    """Ids as elements of a BYTES tensor, each behind its length.

    >>> framed(["a", "bc"], "candidates").hex(" ")
    '01 00 00 00 61 02 00 00 00 62 63'
    """
    try:
        texts = [one.encode() for one in ids]
    except UnicodeEncodeError:
        raise RequestError(field, f"{field} holds text that is not valid Unicode") from None
    try:
        pieces = [piece for text in texts for piece in (LENGTHS[len(text)], text)]
    except IndexError:
        pieces = [piece for text in texts for piece in (len(text).to_bytes(4, "little"), text)]
    return b"".join(pieces)


def _tensors(asked: Asked) -> list[Tensor]:
    users, shape = len(asked.users), list(asked.shape)
    tensors = [Tensor("user", "BYTES", [users], framed(asked.users, "user"))]
    if asked.keys is not None:
        tensors.append(Tensor("candidates", "UINT64", shape, _little(asked.keys, "<u8")))
    else:
        assert asked.ids is not None
        raw = framed(chain.from_iterable(asked.ids), "candidates")
        tensors.append(Tensor("candidates", "BYTES", shape, raw))
    if asked.times_ms:
        try:
            times = np.array(asked.times_ms, "<i8")
        except OverflowError:
            raise RequestError("time", "time is no number of 64 bits") from None
        tensors.append(Tensor("time", "INT64", [len(times)], times.tobytes()))
    return tensors


def _little(values: Array, layout: str) -> bytes:
    return np.ascontiguousarray(values, layout).tobytes()
