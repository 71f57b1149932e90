from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.scorer.clients.conftest import Facts


@pytest.fixture(scope="module")
def facts(facts_of: Callable[[str], Facts]) -> Facts:
    return facts_of("triton_http_client.py")


def test_it_finds_server_and_model_ready(facts: Facts) -> None:
    assert facts["live"]
    assert facts["ready"]
    assert facts["model_ready"]
    assert facts["version_ready"]
    assert not facts["other_ready"]


@pytest.mark.parametrize("form", ["json", "version", "gzip", "deflate", "async"])
def test_every_form_of_a_request_gives_the_same(facts: Facts, form: str) -> None:
    assert len(facts["ctrs"]["binary"]) == 40
    np.testing.assert_allclose(facts["ctrs"][form], facts["ctrs"]["binary"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("of", "status", "words"),
    [
        ("model", "404", "is not served here"),
        ("version", "404", "is not served here"),
        ("input", "400", "is missing among the inputs"),
    ],
)
def test_a_failure_says_what_is_wrong(facts: Facts, of: str, status: str, words: str) -> None:
    assert facts["failures"][of].startswith(status)
    assert words in facts["failures"][of]


def test_statistics_count_users_that_were_scored(facts: Facts) -> None:
    (before,), (after,) = (facts[name]["model_stats"] for name in ("stats_before", "stats"))
    assert after["inference_count"] - before["inference_count"] == 9
    assert facts["stats_of_all"]["model_stats"] == [after]
    assert after["inference_stats"]["compute_infer"]["ns"] > 0
    assert after["last_inference"] > 1_700_000_000_000
    for kind, count in {"success": 8, "fail": 2}.items():
        counts = [one["inference_stats"][kind]["count"] for one in (before, after)]
        assert counts[1] - counts[0] == count
