"""What REST and gRPC share of the Open Inference Protocol (KServe V2): tensors in, tensors out.

Inputs: ``user`` BYTES [1]; ``candidates`` BYTES [B], or UINT64 [B] when the client hashes item ids
itself (`infra.behaviors.item_key`); optionally ``time`` INT64 [1], ms since epoch.
Outputs: ``ctr`` FP32 [B], in the candidates' order, and ``unknown`` BOOL [B], whether the bundle
does not know the candidate; both, unless the request names those that it wants.
Parameters: ``unknown_items``, "score", "last" or "refuse", as in the setting scorer.unknown_items.

A transport makes an `Input` of each tensor that it finds in a request, and writes the `Output`s of
the answer in its own form; what they mean, and every check of them, is here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast, get_args

import msgspec
import numpy as np

from infra.arrays import U64, Array
from infra.errors import RequestError, hint
from infra.settings import UnknownItems
from models.bundle import Manifest
from scorer.limits import (
    MAX_ITEM_CHARS,
    SHOWN_CHARS,
    Refused,
    Time,
    check_candidate_count,
    check_user,
)
from scorer.ranking import Ranker, Ranking

INPUTS: Final = {"user": ("BYTES",), "candidates": ("BYTES", "UINT64"), "time": ("INT64",)}
"""Inputs and the datatypes they may have."""

OUTPUTS: Final = {"ctr": "FP32", "unknown": "BOOL"}
"""Outputs and their datatypes, in the order in which they come where none are named."""

LAYOUTS: Final = {
    "BOOL": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "UINT64": np.dtype("<u8"),
}
"""How elements of a datatype lie in raw bytes."""

UNKNOWN_ITEMS: Final = get_args(UnknownItems)

Parameters = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor of a request. Its elements are either raw bytes or made by a call."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | memoryview | None = None
    """Elements as the protocol lays them out: numbers little-endian, BYTES each behind its length
    (u32)."""
    elements: Callable[[], Sequence[Any]] | None = None
    """Gives the elements in a flat sequence: str or bytes, or numbers. Called once the shape is
    known to be in order, so that what is too much is not even decoded."""


class Output(NamedTuple):
    """A tensor of an answer."""

    name: str
    datatype: str
    shape: list[int]
    values: Array
    """Flat."""

    def raw(self) -> bytes:
        """The elements as the protocol lays them out."""
        return np.ascontiguousarray(self.values, LAYOUTS[self.datatype]).tobytes()


class Inferred(NamedTuple):
    """An answer."""

    name: str
    version: str
    """Of the model."""
    outputs: list[Output]
    """In the order in which the request names them."""
    parameters: Parameters
    """history, newer, unknown_items (how many), as_of_epoch and as_of_count where there is history,
    degraded where it is; as in the answer of /v1/rank."""
    degraded: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request's tensors hold, decoded and checked."""

    user: str
    items: list[str] | None
    """The candidates' ids; None: given as keys."""
    keys: U64 | None
    time_ms: int | None


class Inference:
    """Answers inference requests, whatever brought them. Thread-safe."""

    def __init__(self, max_candidates: int) -> None:
        self._max_candidates = max_candidates

    def infer(
        self,
        ranker: Ranker,
        inputs: Iterable[Input],
        outputs: Sequence[str] = (),
        parameters: Mapping[str, object] | None = None,
    ) -> Inferred:
        """Score what a request asks for. Runs in the ranking thread (`scorer.service.Service.run`).

        Args:
            inputs: every tensor of the request; a generator may check raw bytes on the way.
            outputs: names of those wanted; none: all.
            parameters: the request's.

        Raises:
            RequestError: the request is malformed or exceeds a limit, or holds candidates that are
                not known and not to be scored; names the field or tensor.
            StoreError: the store did not answer, and rankings are not to be degraded.
        """
        wanted = _wanted(outputs)
        asked = self._asked(_by_name(inputs))
        policy = _unknown_items(parameters or {})
        if asked.items is not None:
            ranking = ranker.rank(asked.user, asked.items, asked.time_ms, policy)
        else:
            ranking = ranker.rank_keys(asked.user, cast(U64, asked.keys), asked.time_ms, policy)
        return _inferred(ranker, ranking, wanted)

    def _asked(self, tensors: Mapping[str, Input]) -> _Asked:
        users = _strings(tensors["user"])
        if len(users) != 1:
            raise RequestError("user", f"holds {len(users)} ids, expected 1")
        check_user(users[0])
        given = tensors["candidates"]
        check_candidate_count(given.shape[0], self._max_candidates)
        items, keys = None, None
        if given.datatype == "BYTES":
            items = _strings(given)
        else:
            keys = _numbers(given)
        return _Asked(users[0], items, keys, _time(tensors.get("time")))


def check_model(ranker: Ranker, name: str, version: str = "") -> None:
    """Refuse a model, or a version of it, that is not served here.

    Args:
        version: "" where the request does not say.
    """
    bundle = ranker.bundle
    if name != bundle.manifest.name:
        raise Refused(
            404,
            "unknown_model",
            "name",
            f"{name[:SHOWN_CHARS]!r} is not served here; {bundle.manifest.name} is",
        )
    if version and version != bundle.version:
        raise Refused(
            404,
            "unknown_model",
            "version",
            f"{version[:SHOWN_CHARS]!r} is not served here; {bundle.version} is",
        )


def metadata(manifest: Manifest, version: str) -> dict[str, object]:
    """What a model says of itself, by the names that REST and gRPC share."""
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
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in OUTPUTS.items()
        ],
    }


def _inferred(ranker: Ranker, ranking: Ranking, wanted: Sequence[str]) -> Inferred:
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
    values = {"ctr": ranking.ctrs, "unknown": ranking.unknown}
    shape = [len(ranking.ctrs)]
    outputs = [Output(name, OUTPUTS[name], shape, values[name]) for name in wanted]
    bundle = ranker.bundle
    return Inferred(bundle.manifest.name, bundle.version, outputs, parameters, ranking.degraded)


def _wanted(outputs: Sequence[str]) -> list[str]:
    """The outputs to answer, each once."""
    for name in outputs:
        if name not in OUTPUTS:
            raise RequestError(
                f"outputs.{name[:SHOWN_CHARS]}", f"is not an output; {hint(name, OUTPUTS)}"
            )
    return list(dict.fromkeys(outputs or OUTPUTS))


def _unknown_items(parameters: Mapping[str, object]) -> UnknownItems | None:
    """What the request wants done with unknown candidates; None: it does not say."""
    wanted = parameters.get("unknown_items")
    if wanted is None or wanted in UNKNOWN_ITEMS:
        return cast(UnknownItems | None, wanted)
    raise RequestError(
        "parameters.unknown_items",
        f"is {str(wanted)[:SHOWN_CHARS]!r}, expected {', '.join(UNKNOWN_ITEMS)}",
    )


def _by_name(inputs: Iterable[Input]) -> dict[str, Input]:
    tensors: dict[str, Input] = {}
    for tensor in inputs:
        _check(tensor)
        if tensor.name in tensors:
            raise RequestError(tensor.name, "is given twice")
        tensors[tensor.name] = tensor
    for name in ("user", "candidates"):
        if name not in tensors:
            raise RequestError(name, "is missing among the inputs")
    return tensors


def _check(tensor: Input) -> None:
    if tensor.name not in INPUTS:
        raise RequestError(
            f"inputs.{tensor.name[:SHOWN_CHARS]}", f"is not an input; {hint(tensor.name, INPUTS)}"
        )
    if tensor.datatype not in INPUTS[tensor.name]:
        raise RequestError(
            tensor.name,
            f"has datatype {tensor.datatype[:SHOWN_CHARS]}, expected "
            + " or ".join(INPUTS[tensor.name]),
        )
    if len(tensor.shape) != 1:
        raise RequestError(tensor.name, f"has {len(tensor.shape)} dimensions, expected 1")
    if tensor.shape[0] < 0:
        raise RequestError(tensor.name, f"has a negative dimension, {tensor.shape[0]}")


def _time(tensor: Input | None) -> int | None:
    if tensor is None:
        return None
    times = _numbers(tensor).tolist()
    if len(times) != 1:
        raise RequestError("time", f"holds {len(times)} values, expected 1")
    try:
        return msgspec.convert(times[0], Time)
    except msgspec.ValidationError as error:
        raise RequestError("time", str(error).replace("`", "").lower()) from None


def _numbers(tensor: Input) -> Array:
    layout, size = LAYOUTS[tensor.datatype], tensor.shape[0]
    if tensor.raw is None:
        values = _elements(tensor)
        try:
            return np.array(values, layout)
        except OverflowError:
            raise RequestError(
                tensor.name, f"holds a number too large for {tensor.datatype}"
            ) from None
    if len(tensor.raw) != layout.itemsize * size:
        raise RequestError(tensor.name, f"has {len(tensor.raw)} bytes for {size} {tensor.datatype}")
    return np.frombuffer(tensor.raw, layout)


def _strings(tensor: Input) -> list[str]:
    if tensor.raw is None:
        values = _elements(tensor)
        return [_text(tensor.name, i, value) for i, value in enumerate(values)]
    values = _read_strings(tensor.name, memoryview(tensor.raw))
    return cast(list[str], _counted(tensor, values))


def _elements(tensor: Input) -> Sequence[Any]:
    assert tensor.elements is not None
    return _counted(tensor, tensor.elements())


def _counted(tensor: Input, values: Sequence[Any]) -> Sequence[Any]:
    if len(values) != tensor.shape[0]:
        raise RequestError(tensor.name, f"has shape [{tensor.shape[0]}] and {len(values)} values")
    return values


def _text(name: str, place: int, value: str | bytes) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise RequestError(f"{name}[{place}]", "is not UTF-8") from None
    if not 0 < len(value) <= MAX_ITEM_CHARS:
        raise RequestError(f"{name}[{place}]", f"is empty or longer than {MAX_ITEM_CHARS}")
    return value


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
