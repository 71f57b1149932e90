"""What clients ask: requests drawn at random, in each form that the scorer takes, and its answers
read back into one.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from infra.arrays import F32
from scorer.grpc import open_inference_pb2 as pb
from scorer.http.kserve import HEADER_LENGTH

Form = Literal["v1", "json", "binary", "grpc"]

NOW_MS: Final = 1_700_000_000_000
"""The moment for which all is scored: an answer must not depend on when it was given."""

MODEL: Final = "tiny"
ITEMS: Final = 50
"""Items that the bundles know, as of tests' tiny ones."""
USERS: Final = 60
"""Users of each store."""
MOST: Final = 3_000
"""Candidates of the largest request."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    number: int
    form: Form
    user: str
    candidates: list[str]
    policy: str | None = None
    """What is to become of unknown items."""
    top_k: int | None = None
    explain: int = 0
    version: str | None = None
    """The version of the bundle that it names."""
    timeout_s: float | None = None
    """Time in which its sender wants the answer."""

    @property
    def id(self) -> str:
        return f"soak-{self.number}"


@dataclass(frozen=True)
class Wire:
    """A request as HTTP has it."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer as HTTP has it."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answer:
    """What an answer says, whatever its form."""

    status: int
    """HTTP's; gRPC's codes are told as those."""
    id: str | None = None
    reason: str = ""
    """Of a refusal, in a word."""
    detail: str = ""
    version: str = ""
    history: str = ""
    degraded: bool = False
    ctrs: F32 | None = None
    """f32[B] in the order of the candidates; None: the answer is sorted."""
    ranked: list[tuple[str, float]] = field(default_factory=list)
    """Items and CTRs in the order of the answer, where it is sorted."""
    unknown: int = -1
    """Unknown candidates, each as often as it is told; -1: not told."""
    explained: list[tuple[str, float]] = field(default_factory=list)


def draw(chance: random.Random, number: int, versions: Sequence[str]) -> Asked:
    """A request of anybody for anything."""
    form: Form = chance.choice(("v1", "v1", "json", "binary", "grpc", "grpc"))
    size = max(1, min(MOST, round(MOST ** chance.random())))
    named = chance.random()
    user = (
        f"user-{chance.randrange(USERS)}" if named < 0.8 else f"stranger-{chance.randrange(1000)}"
    )
    candidates = [f"item-{chance.randrange(1, ITEMS + 1)}" for _ in range(size)]
    policy = chance.choice((None, None, "score", "last"))
    if chance.random() < 0.3:
        for _ in range(1 + size // 10):
            candidates[chance.randrange(size)] = f"unheard-of-{chance.randrange(50)} é"
        if chance.random() < 0.1:
            policy = "refuse"
    return Asked(
        number,
        form,
        user,
        candidates,
        policy,
        top_k=chance.randrange(1, 50) if form == "v1" and chance.random() < 0.3 else None,
        explain=chance.randrange(1, 6) if form == "v1" and chance.random() < 0.05 else 0,
        version=chance.choice(versions) if form != "v1" and chance.random() < 0.1 else None,
        timeout_s=chance.choice((None, None, 0.02, 0.1, 0.5, 1.5)),
    )


def over_http(asked: Asked) -> Wire:
    """The request in its form of HTTP; one for gRPC in the JSON of the same protocol."""
    headers = {"x-request-id": asked.id, "content-type": "application/json"}
    if asked.timeout_s is not None:
        headers["x-request-timeout-ms"] = str(round(asked.timeout_s * 1000))
    if asked.form == "v1":
        body: dict[str, Any] = {
            "user": asked.user,
            "candidates": asked.candidates,
            "time": NOW_MS,
        }
        wishes = {
            "top_k": asked.top_k,
            "unknown_items": asked.policy,
            "explain": asked.explain or None,
        }
        body |= {name: value for name, value in wishes.items() if value is not None}
        return Wire("/v1/rank", headers, json.dumps(body, ensure_ascii=False).encode())
    version = f"/versions/{asked.version}" if asked.version else ""
    path = f"/v2/models/{MODEL}{version}/infer"
    raw = asked.form == "binary"
    tensors, blobs = [], []
    for name, kind, values in _tensors(asked):
        tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": [len(values)]}
        if raw:
            blobs.append(_raw(kind, values))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = values
        tensors.append(tensor)
    message: dict[str, Any] = {"id": asked.id, "inputs": tensors}
    parameters: dict[str, Any] = {} if asked.policy is None else {"unknown_items": asked.policy}
    if raw:
        parameters |= {"binary_data_output": True}
    if parameters:
        message["parameters"] = parameters
    head = json.dumps(message).encode()
    if raw:
        headers["content-type"] = "application/octet-stream"
        headers[HEADER_LENGTH] = str(len(head))
    return Wire(path, headers, head + b"".join(blobs))


def over_grpc(asked: Asked) -> pb.ModelInferRequest:
    """The request as gRPC has it."""
    request = pb.ModelInferRequest(model_name=MODEL, model_version=asked.version or "", id=asked.id)
    for name, kind, values in _tensors(asked):
        request.inputs.add(name=name, datatype=kind, shape=[len(values)])
        request.raw_input_contents.append(_raw(kind, values))
    if asked.policy is not None:
        request.parameters["unknown_items"].string_param = asked.policy
    return request


def read_http(asked: Asked, reply: Reply) -> Answer:
    """The answer of HTTP; raises ValueError where it is none."""
    own = reply.headers.get("x-request-id")
    if reply.status != 200:
        return _read_refusal(asked, reply, own)
    if asked.form == "v1":
        said = json.loads(reply.body)
        return Answer(
            200,
            own,
            version=said["version"],
            history=said["history"],
            degraded=said["degraded"],
            ranked=[(one["item"], one["ctr"]) for one in said["items"]],
            unknown=len(said["unknown_items"]),
            explained=[
                (one["item"], one["ctr"]) for one in said.get("explained", {}).get("items", ())
            ],
        )
    length = int(reply.headers.get(HEADER_LENGTH, len(reply.body)))
    said, tail = json.loads(reply.body[:length]), memoryview(reply.body)[length:]
    if said["id"] != asked.id:
        own = said["id"]
    tensors = {}
    for tensor in said["outputs"]:
        kind = {"FP32": "<f4", "BOOL": "u1"}[tensor["datatype"]]
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            tensors[tensor["name"]] = np.array(tensor["data"], kind)
        else:
            tensors[tensor["name"]] = np.frombuffer(tail[:size], kind)
            tail = tail[size:]
    if len(tail):
        raise ValueError(f"{len(tail)} bytes behind the last tensor")
    return _inferred(own, said["model_version"], said["parameters"], tensors)


def read_grpc(response: pb.ModelInferResponse) -> Answer:
    """The answer of gRPC."""
    tensors = {
        tensor.name: np.frombuffer(raw, {"FP32": "<f4", "BOOL": "u1"}[tensor.datatype])
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    parameters = {
        name: getattr(value, str(value.WhichOneof("parameter_choice")))
        for name, value in response.parameters.items()
    }
    return _inferred(response.id, response.model_version, parameters, tensors)


def _inferred(
    own: str | None, version: str, parameters: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Answer:
    unknown = int(tensors["unknown"].sum())
    if unknown != parameters["unknown_items"]:
        raise ValueError(f"unknown_items is {parameters['unknown_items']}, {unknown} are marked")
    return Answer(
        200,
        own,
        version=version,
        history=parameters["history"],
        degraded=parameters.get("degraded", False),
        ctrs=tensors["ctr"].astype(np.float32),
        unknown=unknown,
    )


def _read_refusal(asked: Asked, reply: Reply, own: str | None) -> Answer:
    said = json.loads(reply.body)
    if asked.form == "v1":
        reason = said["type"].rpartition("/")[2]
        return Answer(reply.status, own, reason, said["detail"])
    return Answer(reply.status, own, reason_of(said["error"]), said["error"])


def reason_of(detail: str) -> str:
    """The reason of a refusal that has nothing but its sentence."""
    for words, reason in (
        ("was not scored within", "deadline"),
        ("after its own deadline", "deadline"),
        ("did not arrive by", "slow-body"),
        ("the store", "store"),
        ("is being loaded", "loading"),
        ("that bundle", "unknown-items"),
        ("is not served here", "unknown-model"),
    ):
        if words in detail:
            return reason
    return ""


def _tensors(asked: Asked) -> list[tuple[str, str, list[Any]]]:
    return [
        ("user", "BYTES", [asked.user]),
        ("candidates", "BYTES", asked.candidates),
        ("time", "INT64", [NOW_MS]),
    ]


def _raw(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "INT64":
        return struct.pack(f"<{len(values)}q", *values)
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)
