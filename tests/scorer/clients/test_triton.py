"""What tritonclient finds of a scorer, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from scorer.triton import EXTENSIONS
from tests.scorer.clients.conftest import Facts


class Asked(NamedTuple):
    """What one of its clients saw, and the form of a request that the others are held against."""

    facts: Facts
    usual: str


@pytest.fixture(
    scope="module",
    params=[("triton_http_client.py", "binary"), ("triton_grpc_client.py", "plain")],
    ids=["http", "grpc"],
)
def asked(request: pytest.FixtureRequest, facts_of: Callable[[str], Facts]) -> Asked:
    script, usual = request.param
    return Asked(facts_of(script), usual)


@pytest.fixture
def facts(asked: Asked) -> Facts:
    return asked.facts


def test_it_reads_what_server_and_model_say_of_themselves(facts: Facts) -> None:
    assert facts["server"]["extensions"] == list(EXTENSIONS)
    assert facts["metadata"]["versions"] == [facts["version"]]
    named = [tensor["name"] for tensor in facts["config"]["input"]]
    assert named == [tensor["name"] for tensor in facts["metadata"]["inputs"]]
    (entry,) = facts["index"]
    assert (entry["name"], entry["version"], entry["state"]) == ("tiny", facts["version"], "READY")


def test_an_answer_names_request_and_model(facts: Facts) -> None:
    assert facts["answer"]["id"] == "42"
    assert facts["answer"]["model_name"] == "tiny"
    assert facts["answer"]["model_version"] == facts["version"]
    assert [output["name"] for output in facts["answer"]["outputs"]] == ["ctr", "unknown"]
    assert len(facts["unknown"]) == 40


def test_several_users_are_scored_at_once(asked: Asked) -> None:
    assert np.shape(asked.facts["several"]) == (2, 40)
    np.testing.assert_allclose(
        asked.facts["several"][0], asked.facts["ctrs"][asked.usual], rtol=0, atol=1e-4
    )
