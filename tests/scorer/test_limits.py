from __future__ import annotations

import msgspec
import pytest

from infra.settings import MAX_ITEM_BYTES, ScorerSettings, example_toml
from infra.store import MAX_USER_BYTES
from scorer.ids import check_ids
from scorer.limits import MAX_TIME_MS, too_small_body
from scorer.messages import RankRequest


@pytest.mark.parametrize("count", [1, 200, 10_000])
@pytest.mark.parametrize("letter", ["x", "é", "中", "🦊"])
def test_a_body_may_be_as_large_as_all_that_is_allowed_in_it(count: int, letter: str) -> None:
    settings = ScorerSettings(max_candidates=count)
    longest = letter * (MAX_ITEM_BYTES // len(letter.encode()))
    check_ids("candidates", [longest])
    request = RankRequest("u" * MAX_USER_BYTES, [longest] * count, count, MAX_TIME_MS, "refuse")
    spaces = count + 20  # some encoders write one after each comma and colon
    assert len(msgspec.json.encode(request)) + spaces <= settings.max_body_bytes
    assert too_small_body(settings) is None


def test_a_body_that_is_too_small_for_the_candidates_is_told_with_both_settings() -> None:
    said = too_small_body(ScorerSettings(max_candidates=1000, max_body_bytes=264_095))
    assert said is not None
    assert "scorer.max_body_bytes = 264095" in said
    assert "scorer.max_candidates = 1000" in said
    assert "raise it to 264096" in said
    assert "\n" not in said


def test_the_example_shows_what_follows_from_the_defaults() -> None:
    assert f"#max_body_bytes = {ScorerSettings().max_body_bytes}\n" in example_toml()
