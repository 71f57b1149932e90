from __future__ import annotations

import pytest
import torch

from infra.errors import TrainingError
from models.config import RunConfig, TrainingConfig
from models.devices import determinism, pick_device, process_count, process_rank


def test_torch_is_left_as_it_was_found() -> None:
    config = RunConfig(seed=5, training=TrainingConfig(threads=1, device="cpu"))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with determinism(config):
        torch.rand(3)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides_what_torch_draws() -> None:
    config = RunConfig(seed=5, training=TrainingConfig(device="cpu"))
    with determinism(config):
        first = torch.rand(3)
    with determinism(config):
        assert torch.equal(torch.rand(3), first)


def test_a_gpu_that_is_not_there_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = RunConfig(training=TrainingConfig(device="cuda"))
    with pytest.raises(TrainingError, match='device is "cuda", but torch sees no GPU') as caught:
        pick_device(config)
    assert "\n" not in str(caught.value)


def test_a_process_that_is_alone_is_the_first_of_one() -> None:
    assert (process_rank(), process_count()) == (0, 1)
