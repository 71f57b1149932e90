"""What REST and gRPC share of the Open Inference Protocol (KServe V2): tensors in, tensors out.

Inputs: ``user`` BYTES [1]; ``candidates`` BYTES [B] or [1, B], or their keys where the client
hashes item ids itself (`infra.behaviors.item_key`), UINT64, or INT64 with the same 64 bits;
optionally ``time`` INT64 or UINT64 [1], ms since epoch.
Outputs: ``ctr`` FP32, in the candidates' shape and order, and ``unknown`` BOOL, whether the bundle
does not know the candidate; both, unless the request names those that it wants.
Parameters: ``unknown_items``, "score", "last" or "refuse", as in the setting scorer.unknown_items.

Several users in one request: ``user`` [N] or [N, 1] with ``candidates`` [N, B], a row for each, and
``time`` [1], [N] or [N, 1]. N x B is bounded by scorer.max_candidates.

A transport makes an `Input` of each tensor that it finds in a request, and writes the `Output`s of
the answer in its own form; what they mean, and every check of them, is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast, get_args

import numpy as np

from infra.arrays import U64, Array
from infra.errors import RequestError, hint
from infra.settings import UnknownItems
from models.bundle import Manifest
from scorer.ids import Ids, framed_ids, listed_ids
from scorer.limits import (
    MAX_TIME_MS,
    SHOWN_CHARS,
    Refused,
    check_candidate_count,
    check_user,
)
from scorer.ranking import Ranker, Ranking

INPUTS: Final = {
    "user": ("BYTES",),
    "candidates": ("BYTES", "UINT64", "INT64"),
    "time": ("INT64", "UINT64"),
}
"""Inputs and the datatypes they may have."""

OUTPUTS: Final = {"ctr": "FP32", "unknown": "BOOL"}
"""Outputs and their datatypes, in the order in which they come where none are named."""

LAYOUTS: Final[dict[str, np.dtype[Any]]] = {
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
    """newer, unknown_items (how many), degraded where it is, and of a single user history, and
    as_of_epoch and as_of_count where there is some; as in the answer of /v1/rank."""
    degraded: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request's tensors hold, decoded and checked: N users with B candidates each."""

    users: Sequence[str]
    keys: U64
    """u64[N * B], user by user."""
    names: Ids | None
    """The candidates' ids, in the same order; None: given as keys."""
    times_ms: Sequence[int | None]
    """Of each user."""
    shape: list[int]
    """The candidates', as given."""


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
        rankings = ranker.rank_each(asked.users, asked.keys, asked.times_ms, policy, asked.names)
        return _inferred(ranker, rankings, wanted, asked.shape)

    def _asked(self, tensors: Mapping[str, Input]) -> _Asked:
        user, candidates = tensors["user"], tensors["candidates"]
        N = _per_user(user)
        # By their shape first: what is too much is not even decoded.
        check_candidate_count(N, self._max_candidates, "user")
        size = math.prod(candidates.shape)
        check_candidate_count(size, self._max_candidates)
        rows = candidates.shape[0] if len(candidates.shape) == 2 else 1
        if rows != N:
            raise RequestError(
                "candidates",
                f"has shape {list(candidates.shape)} for {N} users, expected [{N}, B]",
            )
        users = _users(user, N)
        for one in users:
            check_user(one)
        names = _ids(candidates, size) if candidates.datatype == "BYTES" else None
        # A key is 64 bits, whatever its sign.
        keys = names.keys if names is not None else _numbers(candidates, size).view("<u8")
        return _Asked(users, keys, names, _times(tensors.get("time"), N), list(candidates.shape))


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
            {"name": "user", "datatype": "BYTES", "shape": [-1]},
            {"name": "candidates", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "time", "datatype": "INT64", "shape": [-1], "parameters": {"optional": True}},
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, -1]}
            for name, datatype in OUTPUTS.items()
        ],
    }


def _inferred(
    ranker: Ranker, rankings: Sequence[Ranking], wanted: Sequence[str], shape: list[int]
) -> Inferred:
    values: dict[str, Array] = {
        "ctr": np.concatenate([ranking.ctrs for ranking in rankings]),
        "unknown": np.concatenate([ranking.unknown for ranking in rankings]),
    }
    parameters: Parameters = {
        "newer": sum(ranking.newer for ranking in rankings),
        "unknown_items": int(np.count_nonzero(values["unknown"])),
    }
    degraded = any(ranking.degraded for ranking in rankings)
    if degraded:
        parameters["degraded"] = True
    if len(rankings) == 1:
        parameters["history"] = rankings[0].history
        if (as_of := rankings[0].as_of) is not None:
            parameters["as_of_epoch"] = as_of.epoch
            parameters["as_of_count"] = as_of.count
    outputs = [Output(name, OUTPUTS[name], shape, values[name]) for name in wanted]
    bundle = ranker.bundle
    return Inferred(bundle.manifest.name, bundle.version, outputs, parameters, degraded)


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
    if len(tensor.shape) not in {1, 2}:
        raise RequestError(tensor.name, f"has {len(tensor.shape)} dimensions, expected 1 or 2")
    if min(tensor.shape) < 0:
        raise RequestError(tensor.name, f"has a negative dimension in {_shown(tensor.shape)}")


def _per_user(tensor: Input) -> int:
    """N of a tensor with one element for each user."""
    size, *others = tensor.shape
    if others not in ([], [1]):
        raise RequestError(tensor.name, f"has shape {_shown(tensor.shape)}, expected [N] or [N, 1]")
    return size


def _times(tensor: Input | None, users: int) -> Sequence[int | None]:
    """The moment of each user; None: now."""
    if tensor is None:
        return [None] * users
    size = _per_user(tensor)
    if size not in {1, users}:
        raise RequestError("time", f"holds {size} values for {users} users, expected 1 or {users}")
    times = _numbers(tensor, size)
    for place in np.flatnonzero((times < 0) | (times > MAX_TIME_MS)).tolist():
        raise RequestError(f"time[{place}]", f"is {times[place]}, expected 0 to {MAX_TIME_MS}")
    given: list[int | None] = times.tolist()
    return given * users if size == 1 else given


def _numbers(tensor: Input, size: int) -> Array:
    """The elements of a tensor of numbers, in its datatype's layout."""
    layout = LAYOUTS[tensor.datatype]
    if tensor.raw is None:
        values = _elements(tensor, size)
        try:
            return np.array(values, layout)
        except OverflowError:
            raise RequestError(
                tensor.name, f"holds a number that is no {tensor.datatype}"
            ) from None
    if len(tensor.raw) != layout.itemsize * size:
        raise RequestError(tensor.name, f"has {len(tensor.raw)} bytes for {size} {tensor.datatype}")
    return np.frombuffer(tensor.raw, layout)


def _users(tensor: Input, size: int) -> Sequence[str]:
    """`_ids` of whom nobody wants the key."""
    if tensor.raw is None:
        values = _elements(tensor, size)
        # As texts they come from JSON, whose decoder has told their characters.
        if all(isinstance(value, str) and value.isascii() for value in values):
            return values
        return listed_ids(tensor.name, values)
    return _ids(tensor, size)


def _ids(tensor: Input, size: int) -> Ids:
    """The elements of a BYTES tensor."""
    if tensor.raw is None:
        return listed_ids(tensor.name, _elements(tensor, size))
    return framed_ids(tensor.name, tensor.raw, size)


def _elements(tensor: Input, size: int) -> Sequence[Any]:
    assert tensor.elements is not None
    values = tensor.elements()
    if len(values) != size:
        raise RequestError(
            tensor.name, f"has shape {_shown(tensor.shape)} and {len(values)} values"
        )
    return values


def _shown(shape: Sequence[int]) -> str:
    return str(list(shape))[:SHOWN_CHARS]
