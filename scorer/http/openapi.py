"""What the scorer's HTTP interface takes and answers, as an OpenAPI 3.1 document.

Bodies are described by the types that read and write them. A route of the application that nobody
has described here is in the document all the same, in outline.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.routing import BaseRoute, Route

from infra.settings import ScorerSettings
from scorer.http.kserve import HEADER_LENGTH, InferRequest
from scorer.http.problems import JSON, PROBLEM_JSON
from scorer.messages import OutcomesAnswer, OutcomesRequest, Problem, RankAnswer, RankRequest

REFERENCE: Final = "#/components/schemas/"
TEXT: Final = "text/plain"
HTML: Final = "text/html"

Schema = dict[str, Any]


class InferError(msgspec.Struct):
    """Body of any answer below /v2 that is an error, as Open Inference has it."""

    error: str
    """What is wrong, as one sentence."""


class Readiness(msgspec.Struct):
    """Whether rankings are answered."""

    ready: bool
    name: str | msgspec.UnsetType = msgspec.UNSET
    """The model's, where it was asked about."""
    reason: str | msgspec.UnsetType = msgspec.UNSET
    """Why not."""
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET
    """What a person should know of it all the same."""


class Liveness(msgspec.Struct):
    """That the process answers."""

    live: bool


STRUCTS: Final = (
    RankRequest,
    RankAnswer,
    OutcomesRequest,
    OutcomesAnswer,
    Problem,
    InferRequest,
    InferError,
    Readiness,
    Liveness,
)

INFER_ANSWER: Final[Schema] = {
    "title": "InferAnswer",
    "description": "The outputs that were asked for, as Open Inference lays them out.",
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string", "description": "As in the request."},
        "parameters": {"type": "object"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"type": "string"},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "datatype": {"type": "string"},
                    "parameters": {"type": "object"},
                    "data": {"type": "array"},
                },
            },
        },
    },
}

SECURITY: Final[Schema] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a token."},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}

SHAPELESS: Final[Schema] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route as people read of it."""

    summary: str
    """What it does, in a few words."""
    description: str = ""
    """What else there is to know."""
    takes: Mapping[str, Schema] | None = None
    """The body by media type; None: there is none."""
    gives: Mapping[str, Schema] | None = None
    """The body of 200 by media type; None: JSON of no fixed shape."""
    refuses: Mapping[int, str] | None = None
    """Other answers worth naming: what they mean, by status."""
    not_ready: str | None = None
    """A schema with which 503 is answered instead of an error; None: it is an error as others."""
    example: object = None
    """A body that it takes."""


def refers(name: str) -> Schema:
    """The schema of a component.

    >>> refers("Problem")
    {'$ref': '#/components/schemas/Problem'}
    """
    return {"$ref": REFERENCE + name}


BUSY: Final[Mapping[int, str]] = {
    400: "The body is malformed or exceeds a limit; the answer names the field.",
    401: "Who asks is not known, where callers are asked.",
    403: "The caller may not rank with the model in service.",
    413: "The body is too large.",
    415: "The body is of a type or coding that is not read.",
    422: "Candidates are unknown, and the request is to be refused then.",
    429: "Too many requests are waiting, or the caller's of a second were; come again after "
    "Retry-After.",
    503: "Not ready, overloaded or without a store; come again after Retry-After.",
}

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("POST", "/v1/rank"): Operation(
        "Rank candidates for a user",
        "The candidates with their click-through rates, highest first, from all that is known of "
        "the user at this moment.",
        takes={JSON: refers("RankRequest")},
        gives={JSON: refers("RankAnswer")},
        refuses=BUSY,
        example={"user": "17850", "candidates": ["85123A", "22423"], "top_k": 1},
    ),
    ("POST", "/v1/outcomes"): Operation(
        "Tell what became of items that were shown",
        "Their CTRs, as rankings had them, and which were clicked, say. They are counted for the "
        "metrics, which tell whether CTRs are right as probabilities, and not kept.",
        takes={JSON: refers("OutcomesRequest")},
        gives={JSON: refers("OutcomesAnswer")},
        refuses={
            **{status: BUSY[status] for status in (400, 401, 403, 413, 415)},
            429: "The caller has asked too often; come again after Retry-After.",
            503: "The model is being loaded; come again after Retry-After.",
        },
        example={
            "version": "0123456789ab",
            "outcomes": [{"ctr": 0.031, "positive": True}, {"ctr": 0.012, "positive": False}],
        },
    ),
    ("POST", "/v2/models/{name}/infer"): Operation(
        "Score candidates by Open Inference",
        "The Open Inference Protocol (V2). Inputs: user BYTES [1]; candidates BYTES [B], or UINT64 "
        "[B]; optionally time INT64 [1]. Outputs: ctr FP32 [B] and unknown BOOL [B]. Several "
        "users: user [N] and candidates [N, B]. With the "
        f"header {HEADER_LENGTH}, tensors may follow the JSON as bytes.",
        takes={JSON: refers("InferRequest"), "application/octet-stream": {}},
        gives={JSON: refers("InferAnswer"), "application/octet-stream": {}},
        refuses=BUSY,
        example={
            "inputs": [
                {"name": "user", "shape": [1], "datatype": "BYTES", "data": ["17850"]},
                {
                    "name": "candidates",
                    "shape": [2],
                    "datatype": "BYTES",
                    "data": ["85123A", "22423"],
                },
            ]
        },
    ),
    ("GET", "/v2"): Operation("Name and version of the server"),
    ("GET", "/v2/health/live"): Operation(
        "Whether the process answers", gives={JSON: refers("Liveness")}
    ),
    ("GET", "/v2/health/ready"): Operation(
        "Whether rankings are answered",
        gives={JSON: refers("Readiness")},
        not_ready="Readiness",
    ),
    ("GET", "/v2/models/stats"): Operation("How often and how long the model inferred"),
    ("GET", "/v2/models/{name}/stats"): Operation("How often and how long the model inferred"),
    ("GET", "/v2/models/{name}/config"): Operation(
        "The model's configuration, as Triton's tools read it"
    ),
    ("POST", "/v2/repository/index"): Operation(
        "The models that are here, and whether they are ready",
        gives={JSON: {"type": "array", "items": SHAPELESS}},
    ),
    ("GET", "/v2/models/{name}"): Operation("Name, version, inputs and outputs of the model"),
    ("GET", "/v2/models/{name}/ready"): Operation(
        "Whether the model answers",
        gives={JSON: refers("Readiness")},
        refuses={404: "Another model is served."},
        not_ready="Readiness",
    ),
    ("GET", "/metrics"): Operation("Metrics for Prometheus", gives={TEXT: {"type": "string"}}),
    ("GET", "/problems/{kind}"): Operation(
        "What a kind of problem is, and what to do",
        "The type of a problem's details leads here.",
        gives={TEXT: {"type": "string"}},
        refuses={404: "There is no such kind."},
    ),
    ("GET", "/openapi.json"): Operation("This document"),
    ("GET", "/docs"): Operation("This document, for people", gives={HTML: {"type": "string"}}),
}

_VERSIONED: Final = "/versions/{version}"
_PARAMETERS: Final[Mapping[str, str]] = {
    "name": "The model's name.",
    "version": "The version of its bundle.",
    "kind": "A kind of problem, as the end of its type names it.",
}


def document(routes: Iterable[BaseRoute], settings: ScorerSettings, version: str) -> dict[str, Any]:
    """The OpenAPI document of an application.

    Args:
        routes: the application's.
        settings: whose limits it tells.
        version: Lifelong's.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route):
            methods = sorted((route.methods or set()) - {"HEAD"})
            paths.setdefault(route.path, {}).update(
                {method.lower(): _operation(route, method) for method in methods}
            )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lifelong scorer",
            "version": version,
            "description": "Ranks candidates for users by click-through rates, from whole behavior "
            "histories. Every answer has an x-request-id: yours, or a new one.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _components(settings), "securitySchemes": SECURITY},
        # Any of them will do; an empty one means that none need be shown.
        "security": [{"bearer": []}, {"key": []}] if settings.asks_callers else [{}],
    }


def _operation(route: Route, method: str) -> dict[str, Any]:
    path = route.path.replace(_VERSIONED, "")
    outline = Operation(f"{route.name.replace('_', ' ').capitalize()} (in outline)")
    known = OPERATIONS.get((method, path), outline)
    below_v2 = path == "/v2" or path.startswith("/v2/")
    error = {JSON: refers("InferError")} if below_v2 else {PROBLEM_JSON: refers("Problem")}
    answers = {"200": _answer("Done.", known.gives or {JSON: SHAPELESS})}
    for status, meaning in (known.refuses or {}).items():
        answers[str(status)] = _answer(meaning, error)
    if known.not_ready is not None:
        # While the model is being loaded, its name is not known either, which is an error.
        either = {"anyOf": [refers(known.not_ready), *error.values()]}
        answers["503"] = _answer("Not ready.", {JSON: either})
    answers["default"] = _answer("Nothing came of it.", error)
    said: dict[str, Any] = {
        "operationId": _identifier(method, route.path),
        "summary": known.summary,
        "responses": answers,
    }
    if known.description:
        said["description"] = known.description
    names = re.findall(r"{(\w+)}", route.path)
    said["parameters"] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS.get(name, ""),
            "schema": {"type": "string"},
        }
        for name in names
    ]
    said["parameters"].append(
        {
            "name": "x-request-id",
            "in": "header",
            "description": "What the request is called in its answer and in the log.",
            "schema": {"type": "string"},
        }
    )
    if known.takes is not None:
        content: dict[str, Any] = {kind: {"schema": one} for kind, one in known.takes.items()}
        if known.example is not None:
            content[JSON]["example"] = known.example
        said["requestBody"] = {"required": True, "content": content}
    return said


def _answer(meaning: str, content: Mapping[str, Schema]) -> dict[str, Any]:
    return {
        "description": meaning,
        "headers": {
            "x-request-id": {
                "description": "What the request is called in the log.",
                "schema": {"type": "string"},
            }
        },
        "content": {kind: {"schema": schema} for kind, schema in content.items()},
    }


def _identifier(method: str, path: str) -> str:
    """A name for code that is generated.

    >>> _identifier("GET", "/v2/models/{name}/ready")
    'get_v2_models_name_ready'
    """
    return "_".join((method.lower(), *re.findall(r"\w+", path)))


def _components(settings: ScorerSettings) -> dict[str, Schema]:
    _, components = msgspec.json.schema_components(STRUCTS, ref_template=REFERENCE + "{name}")
    for name, said in _said_of(STRUCTS).items():
        for field, text in said.items():
            components[name]["properties"][field]["description"] = text
    asked = components["RankRequest"]["properties"]
    asked["candidates"] |= {"minItems": 1, "maxItems": settings.max_candidates}
    for choice in asked["top_k"]["anyOf"]:
        if choice["type"] == "integer":
            choice["maximum"] = settings.max_candidates
    return {**components, "InferAnswer": INFER_ANSWER}


def _said_of(roots: Iterable[type]) -> dict[str, dict[str, str]]:
    """What is said of each field, by the names of the structs and of those in them."""
    found: dict[str, dict[str, str]] = {}
    for one in msgspec.inspect.multi_type_info(roots):
        _collect(one, found)
    return found


def _collect(kind: Any, found: dict[str, dict[str, str]]) -> None:
    if isinstance(kind, msgspec.inspect.StructType):
        name = kind.cls.__name__
        if name not in found:
            found[name] = field_docs(kind.cls)
            for field in kind.fields:
                _collect(field.type, found)
    elif isinstance(kind, msgspec.inspect.UnionType):
        for one in kind.types:
            _collect(one, found)
    elif isinstance(kind, msgspec.inspect.ListType):
        _collect(kind.item_type, found)


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings under a class's fields, on one line each; none without its source."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:
        return {}
    (defined,) = ast.parse(source).body
    assert isinstance(defined, ast.ClassDef)
    docs = {}
    for field, said in zip(defined.body, defined.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr):
            text = " ".join(ast.literal_eval(said.value).split())
            # What is None here is null to whoever reads and writes the JSON.
            docs[ast.unparse(field.target)] = re.sub(r"\bNone\b", "null", text.replace("`", ""))
    return docs
