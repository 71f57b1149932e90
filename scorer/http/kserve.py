"""``POST /v2/models/{name}/infer``: the Open Inference Protocol (KServe V2), JSON and binary.

Inputs: ``user`` BYTES [1]; ``candidates`` BYTES [B], or UINT64 [B] when the client hashes item ids
itself (`infra.behaviors.item_key`); optionally ``time`` INT64 [1], ms since epoch.
Outputs: ``ctr`` FP32 [B], in the candidates' order, and ``unknown`` BOOL [B], whether the bundle
does not know the candidate; both, unless the request names those that it wants.
Parameters: ``unknown_items``, "score", "last" or "refuse", as in the setting scorer.unknown_items.

With the binary tensor extension a request of 3,000 keys and its answer cost a few microseconds
instead of some hundred. The protocol's layout is kept to the letter; the header
Inference-Header-Content-Length gives the length of the JSON that the tensors' bytes follow.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, cast, get_args

import msgspec
import numpy as np

from infra.arrays import U64, Array
from infra.errors import RequestError, hint
from infra.settings import UnknownItems
from models.bundle import Manifest
from scorer.limits import (
    MAX_ITEM_CHARS,
    SHOWN_CHARS,
    Item,
    Time,
    User,
    check_candidate_count,
    check_user,
    decode_json,
)
from scorer.ranking import Ranker, Ranking

HEADER_LENGTH: Final = "inference-header-content-length"
"""Name of the HTTP header of the binary extension."""

OUTPUTS: Final = ("ctr", "unknown")
UNKNOWN_ITEMS: Final = get_args(UnknownItems)
DATATYPES: Final = {"user": ("BYTES",), "candidates": ("BYTES", "UINT64"), "time": ("INT64",)}
"""Inputs and the types they may have."""

Parameters = dict[str, str | int | float | bool]
Key = Annotated[int, msgspec.Meta(ge=0)]


class InputTensor(msgspec.Struct, forbid_unknown_fields=True):
    """One input; its data is here or among the bytes after the JSON."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class OutputWish(msgspec.Struct, forbid_unknown_fields=True):
    """An output asked for."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a request."""

    inputs: list[InputTensor]
    outputs: list[OutputWish] = []
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = {}


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
    """history, newer, unknown_items (how many), as_of_epoch and as_of_count where there is history,
    degraded where it is; as in the answer of /v1/rank."""
    id: str | msgspec.UnsetType = msgspec.UNSET


class EncodedAnswer(NamedTuple):
    """An answer's body, and the length of its JSON where bytes follow that."""

    body: bytes
    header_length: int | None
    degraded: bool


@dataclass(frozen=True, slots=True)
class InferInputs:
    """What a request's tensors hold, decoded and checked."""

    user: str
    items: list[str] | None
    """The candidates' ids; None: given as keys."""
    keys: U64 | None
    time_ms: int | None


class KServe:
    """Answers inference requests: the body of one becomes that of its answer. Thread-safe."""

    def __init__(self, max_candidates: int) -> None:
        self._max_candidates = max_candidates
        self._request = msgspec.json.Decoder(InferRequest)
        self._users = msgspec.json.Decoder(list[User])
        self._items = msgspec.json.Decoder(list[Item])
        self._keys = msgspec.json.Decoder(list[Key])
        self._times = msgspec.json.Decoder(list[Time])
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
        wishes = _wishes(request)
        inputs = self._inputs(request, tail)
        policy = _unknown_items(request)
        if inputs.items is not None:
            ranking = ranker.rank(inputs.user, inputs.items, inputs.time_ms, policy)
        else:
            ranking = ranker.rank_keys(inputs.user, cast(U64, inputs.keys), inputs.time_ms, policy)
        return self._encode(ranker, request, ranking, wishes)

    def _inputs(self, request: InferRequest, tail: memoryview) -> InferInputs:
        tensors = _tensors(request, tail)
        user, user_bytes = tensors["user"]
        given, given_bytes = tensors["candidates"]
        users = self._strings(user, user_bytes, self._users)
        if len(users) != 1:
            raise RequestError("user", f"holds {len(users)} ids, expected 1")
        check_user(users[0])
        # By its shape first: what is too much is not even decoded.
        check_candidate_count(given.shape[0], self._max_candidates)
        items, keys = None, None
        if given.datatype == "BYTES":
            items = self._strings(given, given_bytes, self._items)
        else:
            keys = self._numbers(given, given_bytes, np.dtype("<u8"), self._keys)
        return InferInputs(users[0], items, keys, self._time(tensors))

    def _time(self, tensors: Mapping[str, tuple[InputTensor, memoryview | None]]) -> int | None:
        if "time" not in tensors:
            return None
        tensor, raw = tensors["time"]
        times = self._numbers(tensor, raw, np.dtype("<i8"), self._times).tolist()
        if len(times) != 1:
            raise RequestError("time", f"holds {len(times)} values, expected 1")
        try:
            return msgspec.convert(times[0], Time)
        except msgspec.ValidationError as error:
            raise RequestError("time", str(error).replace("`", "").lower()) from None

    def _strings(
        self, tensor: InputTensor, raw: memoryview | None, decoder: msgspec.json.Decoder[list[str]]
    ) -> list[str]:
        if raw is not None:
            return _checked_length(tensor, _read_strings(tensor.name, raw))
        return _checked_length(tensor, _from_json(tensor, decoder))

    def _numbers(
        self,
        tensor: InputTensor,
        raw: memoryview | None,
        dtype: np.dtype[Any],
        decoder: msgspec.json.Decoder[list[int]],
    ) -> Array:
        if raw is None:
            values = _checked_length(tensor, _from_json(tensor, decoder))
            try:
                return np.array(values, dtype)
            except OverflowError:
                raise RequestError(
                    tensor.name, f"holds a number too large for {tensor.datatype}"
                ) from None
        if len(raw) != dtype.itemsize * tensor.shape[0]:
            raise RequestError(
                tensor.name, f"has {len(raw)} bytes for {tensor.shape[0]} {tensor.datatype}"
            )
        return np.frombuffer(raw, dtype)

    def _encode(
        self, ranker: Ranker, request: InferRequest, ranking: Ranking, wishes: dict[str, bool]
    ) -> EncodedAnswer:
        bundle = ranker.bundle
        parameters: Parameters = {
            "history": ranking.history,
            "newer": ranking.newer,
            "unknown_items": int(np.count_nonzero(ranking.unknown)),
        }
        if ranking.degraded:
            parameters["degraded"] = True
        if ranking.as_of is not None:
            parameters["as_of_epoch"] = ranking.as_of.epoch
            parameters["as_of_count"] = ranking.as_of.count
        outputs, blobs = [], []
        for name, binary in wishes.items():
            values = ranking.ctrs if name == "ctr" else ranking.unknown
            tensor = OutputTensor(name, [len(values)], "FP32" if name == "ctr" else "BOOL")
            if binary:
                blob = np.ascontiguousarray(values, "<f4" if name == "ctr" else "u1").tobytes()
                tensor.parameters = {"binary_data_size": len(blob)}
                blobs.append(blob)
            elif name == "ctr":
                tensor.data = np.round(values.astype(np.float64), 9).tolist()
            else:
                tensor.data = values.tolist()
            outputs.append(tensor)
        head = self._encoder.encode(
            InferAnswer(bundle.manifest.name, bundle.version, outputs, parameters, request.id)
        )
        if not blobs:
            return EncodedAnswer(head, None, ranking.degraded)
        return EncodedAnswer(b"".join((head, *blobs)), len(head), ranking.degraded)


def metadata(manifest: Manifest, version: str) -> dict[str, object]:
    """The content of the answer to ``GET /v2/models/{name}``."""
    return {
        "name": manifest.name,
        "versions": [version],
        "platform": f"lifelong_{manifest.system}",
        "inputs": [
            {"name": "user", "datatype": "BYTES", "shape": [1]},
            {"name": "candidates", "datatype": "BYTES", "shape": [-1]},
            {"name": "time", "datatype": "INT64", "shape": [1], "parameters": {"optional": True}},
        ],
        "outputs": [
            {"name": "ctr", "datatype": "FP32", "shape": [-1]},
            {"name": "unknown", "datatype": "BOOL", "shape": [-1]},
        ],
    }


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


def _wishes(request: InferRequest) -> dict[str, bool]:
    """The outputs asked for, and whether each goes out as bytes."""
    default = request.parameters.get("binary_data_output", False) is True
    if not request.outputs:
        return dict.fromkeys(OUTPUTS, default)
    wishes = {}
    for wish in request.outputs:
        if wish.name not in OUTPUTS:
            raise RequestError(
                f"outputs.{wish.name[:SHOWN_CHARS]}",
                f"is not an output; {hint(wish.name, OUTPUTS)}",
            )
        wishes[wish.name] = wish.parameters.get("binary_data", default) is True
    return wishes


def _unknown_items(request: InferRequest) -> UnknownItems | None:
    """What the request wants done with unknown candidates; None: it does not say."""
    wanted = request.parameters.get("unknown_items")
    if wanted is None or wanted in UNKNOWN_ITEMS:
        return cast(UnknownItems | None, wanted)
    raise RequestError(
        "parameters.unknown_items",
        f"is {str(wanted)[:SHOWN_CHARS]!r}, expected {', '.join(UNKNOWN_ITEMS)}",
    )


def _tensors(
    request: InferRequest, tail: memoryview
) -> dict[str, tuple[InputTensor, memoryview | None]]:
    """The inputs by name, each with its bytes where it has some."""
    tensors: dict[str, tuple[InputTensor, memoryview | None]] = {}
    at = 0
    for tensor in request.inputs:
        _check_tensor(tensor)
        if tensor.name in tensors:
            raise RequestError(tensor.name, "is given twice")
        size = tensor.parameters.get("binary_data_size")
        raw = None
        if size is not None:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise RequestError(tensor.name, "has no valid binary_data_size")
            raw = tail[at : at + size]
            at += size
            if at > len(tail):
                raise RequestError(tensor.name, f"announces {size} bytes that are not there")
        elif tensor.data is msgspec.UNSET:
            raise RequestError(tensor.name, "has neither data nor a binary_data_size")
        tensors[tensor.name] = tensor, raw
    if at != len(tail):
        raise RequestError("body", f"has {len(tail) - at} bytes after the last tensor")
    for name in ("user", "candidates"):
        if name not in tensors:
            raise RequestError(name, "is missing among the inputs")
    return tensors


def _check_tensor(tensor: InputTensor) -> None:
    if tensor.name not in DATATYPES:
        raise RequestError(
            f"inputs.{tensor.name[:SHOWN_CHARS]}",
            f"is not an input; {hint(tensor.name, DATATYPES)}",
        )
    if tensor.datatype not in DATATYPES[tensor.name]:
        raise RequestError(
            tensor.name,
            f"has datatype {tensor.datatype[:SHOWN_CHARS]}, expected "
            + " or ".join(DATATYPES[tensor.name]),
        )
    if len(tensor.shape) != 1:
        raise RequestError(tensor.name, f"has {len(tensor.shape)} dimensions, expected 1")


def _from_json(tensor: InputTensor, decoder: msgspec.json.Decoder[list[Any]]) -> list[Any]:
    try:
        return decode_json(decoder, bytes(cast(msgspec.Raw, tensor.data)))
    except RequestError as error:
        place = error.field if error.field.startswith("[") else ""
        raise RequestError(tensor.name + place, str(error)) from None


def _checked_length(tensor: InputTensor, values: list[Any]) -> list[Any]:
    if len(values) != tensor.shape[0]:
        raise RequestError(tensor.name, f"has shape [{tensor.shape[0]}] and {len(values)} values")
    return values


def _read_strings(name: str, raw: memoryview) -> list[str]:
    """BYTES elements: each a length (u32, little-endian) and as many bytes, here UTF-8."""
    values: list[str] = []
    at, end = 0, len(raw)
    unpack = struct.Struct("<I").unpack_from
    try:
        while at < end:
            start = at + 4
            at = start + unpack(raw, at)[0]
            # A slice past the end would quietly be shorter.
            if at > end or not 0 < at - start <= 4 * MAX_ITEM_CHARS:
                raise RequestError(
                    f"{name}[{len(values)}]", f"is empty, cut off or too long ({at - start} bytes)"
                )
            values.append(str(raw[start:at], "utf-8"))
    except struct.error:
        raise RequestError(f"{name}[{len(values)}]", "is cut off") from None
    except UnicodeDecodeError:
        raise RequestError(f"{name}[{len(values)}]", "is not UTF-8") from None
    if any(len(value) > MAX_ITEM_CHARS for value in values):
        raise RequestError(name, f"holds an id longer than {MAX_ITEM_CHARS} characters")
    return values
