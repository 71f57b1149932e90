"""Requests that an OpenAPI document allows, or nearly, and whether answers are what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

Document = Mapping[str, Any]

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
MOST = 4
"""Elements of a list, where the schema says no more."""


def values(schema: Mapping[str, Any], document: Document) -> st.SearchStrategy[Any]:
    """What a schema allows."""
    if "$ref" in schema:
        return values(component(schema["$ref"], document), document)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values(one, document) for one in schema["anyOf"]])
    match schema.get("type"):
        case "string":
            least, most = schema.get("minLength", 0), schema.get("maxLength", 20)
            return st.text(min_size=least, max_size=min(most, 20))
        case "integer":
            return st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63))
        case "number":
            least, most = schema.get("minimum"), schema.get("maximum")
            return st.floats(least, most, allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            least, most = schema.get("minItems", 0), schema.get("maxItems", MOST)
            items = values(schema.get("items", {}), document)
            return st.lists(items, min_size=least, max_size=min(most, MOST))
        case "object":
            of = {name: values(one, document) for name, one in schema.get("properties", {}).items()}
            needed = {name: of.pop(name) for name in schema.get("required", [])}
            return st.fixed_dictionaries(needed, optional=of)
        case _:
            return ANYTHING


def bodies(schema: Mapping[str, Any], document: Document) -> st.SearchStrategy[Any]:
    """What a schema allows, and what it does not: with a member too few, or another's value."""
    allowed = values(schema, document)

    @st.composite
    def spoilt(draw: st.DrawFn) -> Any:
        body = draw(allowed)
        if not isinstance(body, dict) or not body:
            return body
        name = draw(st.sampled_from(sorted(body)))
        if draw(st.booleans()):
            del body[name]
        else:
            body[name] = draw(ANYTHING)
        return body

    return allowed | spoilt()


def component(reference: str, document: Document) -> Mapping[str, Any]:
    name = reference.rpartition("/")[2]
    found: Mapping[str, Any] = document["components"]["schemas"][name]
    return found


def check_answer(
    response: httpx.Response, operation: Mapping[str, Any], document: Document
) -> None:
    """Fail unless status, type and body of an answer are what its operation says."""
    told = operation["responses"]
    about = told.get(str(response.status_code), told["default"])
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in about["content"], f"{response.status_code} of {kind}: {response.text}"
    if kind.endswith("json"):
        schema = {**about["content"][kind]["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(response.json())
