"""Where a run computes: its device, threads and seeds, and the processes of ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from infra.errors import TrainingError
from models.config import RunConfig


def pick_device(config: RunConfig) -> torch.device:
    """The device of a run.

    Raises:
        TrainingError: the configuration asks for a GPU and there is none.
    """
    wanted = config.training.device
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise TrainingError(
            'training.device is "cuda", but torch sees no GPU here; take "auto" or "cpu"'
        )
    if there and wanted != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def determinism(config: RunConfig) -> Iterator[torch.device]:
    """The threads and seeds of a run; what was before comes back after it."""
    device = pick_device(config)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.seed)
    try:
        with process_group(device):
            yield device
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The group of ``torchrun``'s processes while the block runs; without torchrun, nothing."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def process_rank() -> int:
    """This process's number among those of the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of all processes' values, element by element; in place."""
    if process_count() > 1:
        dist.all_reduce(values)
    return values


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch, and the kernels that follow it, use one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
