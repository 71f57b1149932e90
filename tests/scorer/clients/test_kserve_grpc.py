from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.scorer.clients.conftest import Facts


@pytest.fixture(scope="module")
def facts(facts_of: Callable[[str], Facts]) -> Facts:
    return facts_of("kserve_grpc_client.py")


def test_it_finds_server_and_model_ready(facts: Facts) -> None:
    assert facts["live"]
    assert facts["ready"]
    assert facts["model_ready"]


def test_typed_contents_and_bytes_give_the_same(facts: Facts) -> None:
    assert len(facts["ctrs"]["typed"]) == 40
    np.testing.assert_allclose(facts["ctrs"]["typed"], facts["ctrs"]["raw"], rtol=0, atol=1e-4)
    assert facts["id"] == "42"


def test_a_failure_says_what_is_wrong(facts: Facts) -> None:
    assert "is not served here" in facts["failure"]
