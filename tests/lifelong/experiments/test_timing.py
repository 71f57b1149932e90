"""Methods alternate, a warm-up does not count, and ratios are taken round by round."""

import torch

from lifelong.experiments.timing import Times, time_in_turns
from models.devices import one_thread


def test_systems_alternate_and_the_warm_up_does_not_count() -> None:
    called: list[str] = []
    systems = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    times = time_in_turns(systems, rounds=2, warm_up=1)
    assert called == ["a", "b"] * 3
    assert [len(taken.processor) for taken in times.values()] == [2, 2]
    assert [len(taken.passed) for taken in times.values()] == [2, 2]


def test_a_ratio_is_the_median_over_rounds() -> None:
    assert Times([2.0, 9.0, 12.0]).ratio(Times([1.0, 3.0, 6.0])) == 2.0


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
