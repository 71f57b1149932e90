"""Whether the check finds what is wrong: each test spoils one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scorer.ranking import Ranking
from tests.soak.asking import Answer, Asked
from tests.soak.checking import Check, Outcome, trouble_of_probe
from tests.soak.ledger import NOTICED_S, Ledger, Span, Told
from tests.soak.oracle import NOTHING

ASKED = Asked(7, "binary", "u", ["a", "b", "c"])
SORTED = replace(ASKED, form="v1")
CTRS = {"one": [0.1, 0.3, 0.2], "other": [0.5, 0.6, 0.4], NOTHING: [0.2, 0.2, 0.2]}
AWAY = Span(100, 200)


def rank(version: str, store: str, asked: Asked) -> Ranking:
    kind: Any = "none" if store == NOTHING else "interests"
    ctrs = np.array(CTRS[store], np.float32) + (0.1 if version == "v2" else 0)
    return Ranking(ctrs=ctrs, history=kind, unknown=np.zeros(3, np.bool_))


def answer(**more: Any) -> Answer:
    told = {"id": ASKED.id, "version": "v1", "history": "interests", "unknown": 0, **more}
    return Answer(200, ctrs=np.array(told.pop("ctrs", CTRS["one"]), np.float32), **told)


def sorted_answer(ranked: list[tuple[str, float]]) -> Answer:
    return replace(answer(), ctrs=None, ranked=ranked)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(
        kills=[50],
        down=[Span(300, 310)],
        leave=[Span(299, 305)],
        away=[AWAY],
        refuses=[Told(0, "degrade")],
        stores=[Told(0, "one"), Told(400, "other")],
        versions=[Told(0, "v1"), Told(500, "v2")],
    )


@pytest.fixture
def trouble(ledger: Ledger) -> Callable[..., list[str]]:
    def look(answer: Answer | None, at: float = 10, *, took: float = 0.1, **more: Any) -> list[str]:
        check = Check(ledger, rank)
        asked = more.pop("asked", ASKED)
        check.look(Outcome(asked, "HTTP/1.1", at, at + took, answer, **more))
        return list(check.checked.wrong)

    return look


Look = Callable[..., list[str]]


def test_a_right_answer_is_right(trouble: Look) -> None:
    assert trouble(answer()) == []


def test_a_ctr_that_is_a_little_off_is_found(trouble: Look) -> None:
    assert trouble(answer(ctrs=[0.1, 0.3, 0.20002])) == ["other CTRs"]


def test_an_answer_to_another_request_is_found(trouble: Look) -> None:
    assert trouble(answer(id="soak-8")) == ["an answer to another request"]


def test_a_bundle_that_was_exchanged_long_ago_is_found(trouble: Look) -> None:
    assert trouble(answer(), 600) == ["an answer of a bundle that is not in service"]


def test_the_store_that_was_replaced_may_be_read_for_a_moment_only(trouble: Look) -> None:
    assert trouble(answer(), 401) == []
    assert trouble(answer(), 401 + NOTICED_S) == ["other CTRs"]


def test_a_degraded_answer_is_a_stranger_s_and_needs_an_outage(trouble: Look) -> None:
    degraded = answer(degraded=True, history="none", ctrs=CTRS[NOTHING])
    assert trouble(degraded, 150) == []
    assert trouble(degraded, 10) == ["a degraded answer while there was a store"]
    assert trouble(answer(), 150) == ["an answer that is not degraded though there is no store"]


def test_a_scorer_that_is_to_refuse_may_not_degrade(ledger: Ledger, trouble: Look) -> None:
    ledger.refuses[:] = [Told(0, "refuse")]
    degraded = answer(degraded=True, history="none", ctrs=CTRS[NOTHING])
    assert trouble(degraded, 150) == ["a degraded answer of a scorer that is to refuse"]
    assert trouble(Answer(503, ASKED.id, "store"), 150) == []
    assert trouble(Answer(503, ASKED.id, "store"), 10) != []


def test_a_connection_is_lost_by_a_kill_or_a_stop_alone(trouble: Look) -> None:
    for at, explained in ((50, True), (10, False), (305, True), (320, False)):
        assert (trouble(None, at, lost="NotAnswered: ...") == []) == explained


def test_a_deadline_is_given_up_when_it_has_passed(trouble: Look) -> None:
    late = Answer(503, ASKED.id, "deadline")
    assert trouble(late, took=2.0) == []
    assert trouble(late, took=0.2) == ["a refusal that nothing explains, 503 deadline"]


def test_an_answer_of_500_is_found(trouble: Look) -> None:
    wrong = trouble(Answer(500, ASKED.id, "internal"))
    assert wrong == ["a refusal that nothing explains, 500 internal"]


@pytest.mark.parametrize(
    ("ranked", "top_k", "found"),
    [
        ([("b", 0.3), ("c", 0.2), ("a", 0.1)], None, []),
        ([("b", 0.3)], 1, []),
        ([("c", 0.2)], 1, ["a top without what is higher"]),
        ([("b", 0.3), ("a", 0.1)], None, ["another number of items than asked for"]),
        (
            [("b", 0.3), ("b", 0.3), ("a", 0.1)],
            None,
            ["items that were not asked for, or too often"],
        ),
        ([("c", 0.2), ("b", 0.3), ("a", 0.1)], None, ["items that are not in order"]),
    ],
)
def test_a_sorted_answer_is_whole_and_in_order(
    trouble: Look, ranked: list[tuple[str, float]], top_k: int | None, found: list[str]
) -> None:
    assert trouble(sorted_answer(ranked), asked=replace(SORTED, top_k=top_k)) == found


def test_readiness_says_what_is_the_matter(ledger: Ledger) -> None:
    assert trouble_of_probe(ledger, 10, 11, 200, "") is None
    assert trouble_of_probe(ledger, 10, 11, 503, "") == "not ready without a reason"
    assert trouble_of_probe(ledger, 301, 302, 200, "") == "ready though it was told to stop"
    assert trouble_of_probe(ledger, 150, 151, 200, "rankings are degraded: ...") is None
    assert trouble_of_probe(ledger, 150, 151, 200, "") is not None
    ledger.refuses[:] = [Told(0, "refuse")]
    assert trouble_of_probe(ledger, 150, 151, 200, "") == "ready without a store"
    assert trouble_of_probe(ledger, 150, 151, 503, "") is None
