from __future__ import annotations

import contextlib
import random

import pytest
from prometheus_client import CollectorRegistry

from infra.metrics import Figures, ScorerMetrics
from scorer.limits import Refused
from scorer.turns import LEVELS, Cost, Head, Turn, Turns
from tests.scorer.conftest import Clock

COST_S = 0.001
HEAD = Head("/v1/rank", 100)


class Scene:
    """Turns under a clock set by hand, at which every request takes 1 ms."""

    def __init__(self, deadline_s: float = 0.05, max_waiting: int = 1000) -> None:
        self.clock = Clock()
        self.turns = Turns(max_waiting, deadline_s, self.clock)
        self.serve(self.take())  # it knows what one costs

    def take(self, head: Head = HEAD) -> Turn:
        return self.turns.admit(head)

    def serve(self, turn: Turn, cost_s: float = COST_S) -> None:
        self.clock.now += cost_s
        turn.finished_at = self.clock.now
        self.turns.give_back(turn)

    def taken(self, head: Head = HEAD) -> int:
        """How many more are taken on until one is refused."""
        count = 0
        while True:
            try:
                self.take(head)
            except Refused:
                return count
            count += 1

    def overload(self, times: int = 4) -> None:
        """Offer several times what can be done for a second, and do it."""
        under_way: list[Turn] = []
        for number in range(1000 * times):
            with contextlib.suppress(Refused):
                under_way.append(self.take())
            if under_way and not number % times:
                self.serve(under_way.pop(0))
        for turn in under_way:
            self.serve(turn)


def test_a_burst_is_taken_on_as_far_as_it_can_be_answered_in_time() -> None:
    assert 35 <= Scene(deadline_s=0.05).taken() <= 50


def test_who_has_less_time_is_refused_earlier() -> None:
    scene = Scene()
    hasty = HEAD._replace(timeout_s=0.01)
    assert scene.taken(hasty) <= 10
    with pytest.raises(Refused) as refused:
        scene.take(hasty)
    assert refused.value.status == 429
    assert refused.value.reason == "deadline"
    scene.take(HEAD)


def test_nobody_with_any_time_is_refused_while_nobody_waits() -> None:
    scene = Scene()
    scene.serve(scene.take(HEAD._replace(timeout_s=COST_S / 10)))
    with pytest.raises(Refused):
        scene.take(HEAD._replace(timeout_s=0.0))


def test_a_moment_in_which_answers_were_late_has_nobody_refused_for_good() -> None:
    scene = Scene()
    late = scene.take()
    late.finished_at = scene.clock.now + COST_S
    scene.clock.now += 60
    scene.turns.give_back(late)
    for _ in range(100):
        scene.clock.now += 0.1
        scene.serve(scene.take())
    assert 35 <= scene.taken() <= 50


def test_while_more_comes_than_can_be_done_few_wait() -> None:
    scene = Scene()
    scene.overload()
    assert scene.turns.load > 2
    assert 1 <= scene.taken() <= 4


def test_after_an_overload_bursts_are_taken_on_again() -> None:
    scene = Scene()
    scene.overload()
    scene.clock.now += 2
    assert scene.taken() >= 35


def test_the_more_comes_the_later_the_refused_are_to_come_again() -> None:
    scene = Scene()
    assert scene.turns.retry_after_s == 1
    scene.overload(times=4)
    assert 3 <= scene.turns.retry_after_s <= 5


def test_clients_who_wait_for_their_answers_are_all_answered() -> None:
    scene = Scene()
    under_way = [scene.take() for _ in range(16)]
    for _ in range(3000):
        scene.serve(under_way.pop(0))
        under_way.append(scene.take())


def test_urgent_ones_are_taken_on_before_others() -> None:
    scene = Scene()
    scene.overload()
    scene.taken(HEAD._replace(level=LEVELS - 1))
    assert scene.taken(HEAD._replace(level=0)) > 0


def test_a_client_alone_may_have_all_the_time_there_is() -> None:
    scene = Scene()
    scene.clock.now += 2
    assert scene.taken(HEAD._replace(client="a")) >= 35


def test_one_client_cannot_take_the_others_turns() -> None:
    scene = Scene()
    scene.take(HEAD._replace(client="b"))
    assert 15 <= scene.taken(HEAD._replace(client="a")) <= 25
    assert scene.taken(HEAD._replace(client="b")) >= 10


def test_memory_is_bounded_whatever_requests_cost() -> None:
    assert Scene(max_waiting=7).taken() == 8


def test_time_apart_is_none_of_the_ranking_thread_s() -> None:
    scene = Scene()
    for _ in range(200):
        turn = scene.take()
        turn.apart_s = 0.005
        scene.serve(turn, 0.005 + COST_S)
    assert 35 <= scene.taken() <= 50


def test_what_a_request_costs_is_told_by_its_size() -> None:
    cost = Cost()
    for _ in range(300):
        for size in (800, 4000, 24_000):
            cost.learn(size, 0.0005 + size * 1e-7)
    assert cost.of(800) == pytest.approx(0.00058, rel=0.05)
    assert cost.of(24_000) == pytest.approx(0.0029, rel=0.05)


def test_a_moment_in_which_the_machine_stood_still_is_soon_forgotten() -> None:
    cost = Cost()
    for _ in range(100):
        cost.learn(800, COST_S)
    cost.learn(800, 3.0)
    assert cost.of(800) < 1.5 * COST_S


def test_what_the_first_request_took_is_not_expected_of_the_next() -> None:
    cost = Cost()
    cost.learn(100, 1.0)
    cost.learn(100, COST_S)
    assert cost.of(100) == COST_S


def test_a_moment_in_which_the_machine_stood_still_is_soon_forgotten_at_the_beginning() -> None:
    cost = Cost()
    for seconds in (COST_S, 8 * COST_S, *[COST_S] * 20):
        cost.learn(100, seconds)
    assert cost.of(100) < 1.5 * COST_S


def test_small_differences_of_size_tell_nothing_of_large_ones() -> None:
    cost = Cost()
    draw = random.Random(1)
    for _ in range(100):
        cost.learn(draw.randint(910, 916), draw.uniform(0.01, 0.1))
    assert cost.of(25_000) < 0.2


def test_no_request_is_expected_to_take_more_a_byte_than_smaller_ones_took() -> None:
    cost = Cost()
    for number in range(100):
        cost.learn(1000 + 300 * (number % 2), 0.001 + 0.1 * (number % 2))
    assert cost.of(11_500) < 11 * 0.06


def test_of_a_route_that_is_new_the_quickest_request_tells_what_the_next_takes() -> None:
    cost = Cost()
    for seconds in (1.0, 0.9, COST_S, 0.5):
        cost.learn(100, seconds)
    assert cost.of(100) == COST_S


@pytest.mark.parametrize("stalls", ["at first", "now and then", "all the time"])
def test_a_few_clients_who_wait_are_answered_on_a_machine_that_stands_still(stalls: str) -> None:
    scene = Scene(deadline_s=2.0)
    draw = random.Random(stalls)
    likely = {"at first": 1.0, "now and then": 0.02, "all the time": 0.5}[stalls]
    under_way = [scene.take() for _ in range(4)]
    for number in range(3000):
        if stalls == "at first" and number == 8:
            likely = 0.0
        still = draw.random() < likely
        scene.serve(under_way.pop(0), draw.uniform(0.05, 0.3) if still else COST_S)
        under_way.append(scene.take())


class Told:
    """Turns that tell how they are waited for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.clock = Clock()
        self.turns = Turns(8, 0.05, self.clock, ScorerMetrics(self.registry))

    def of(self, name: str) -> float:
        return Figures(self.registry).sum(f"lifelong_scorer_{name}")


def test_it_is_told_how_long_a_turn_was_waited_for() -> None:
    told = Told()
    turn = told.turns.admit(HEAD)
    turn.began_at = told.clock.now + 0.03
    turn.finished_at = told.clock.now = turn.began_at + COST_S
    told.turns.give_back(turn)
    assert told.of("queue_seconds_sum") == pytest.approx(0.03)
    assert told.of("deadline_misses_total") == 0


def test_it_is_told_that_a_deadline_was_missed() -> None:
    told = Told()
    never_begun, late = told.turns.admit(HEAD), told.turns.admit(HEAD)
    late.began_at = told.clock.now + 0.01
    late.finished_at = told.clock.now = told.clock.now + 0.06
    for turn in (never_begun, late):
        told.turns.give_back(turn)
    assert told.of("deadline_misses_total") == 2
    assert told.of("queue_seconds_count") == 1


def test_who_leaves_before_the_deadline_has_missed_none() -> None:
    told = Told()
    told.turns.give_back(told.turns.admit(HEAD))
    assert told.of("deadline_misses_total") == 0
