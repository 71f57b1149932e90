"""Small inputs, sequences and candidates to try a long-term module on."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from models.data.schema import Inputs, Schema
from models.modules.long_term import LongTerm, State
from models.modules.sequence import BehaviorSequence, Target

D = 8
"""Width of the embeddings."""
ITEMS = 30
ACTIONS = 4
CATEGORIES = 5


def tiny_inputs(behavior: tuple[str, ...] = ()) -> Inputs:
    """Items with a category, and the behavior features named."""
    categories = np.arange(ITEMS + 1, dtype=np.int64)[:, None] % CATEGORIES
    heights = {f"behavior.{name}": ACTIONS for name in behavior} | {"item.category": CATEGORIES}
    schema = Schema(category="category", behavior=behavior)  # type: ignore[arg-type]
    return Inputs(schema, ITEMS, 1, {"category": categories}, {}, heights)


def sequence_of(
    lengths: list[int], L: int, behavior: tuple[str, ...] = (), seed: int = 0
) -> BehaviorSequence:
    """Random behaviors, as many of each request as told; padding in front."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(L) >= L - torch.tensor(lengths)[:, None]
    shape = mask.shape
    return BehaviorSequence(
        torch.randint(1, ITEMS + 1, shape, generator=random) * mask,
        mask,
        torch.randn(ITEMS + 1, D, generator=random, requires_grad=True),
        features={
            name: torch.randint(0, ACTIONS, shape, generator=random) * mask for name in behavior
        },
        feature_tables={
            name: torch.randn(ACTIONS, D, generator=random, requires_grad=True) for name in behavior
        },
        categories=torch.arange(ITEMS + 1) % CATEGORIES,
    )


def degenerate_sequence(behavior: tuple[str, ...] = (), L: int = 12) -> BehaviorSequence:
    """A full sequence, a padded one, a single behavior, none, and behaviors all alike."""
    sequence = sequence_of([L, L // 2, 1, 0, L], L, behavior)
    sequence.rows[-1] = 7
    for rows in sequence.features.values():
        rows[-1] = 1
    return sequence


def targets_of(sequence: BehaviorSequence, B: int = 3, seed: int = 1) -> Target:
    """Random candidates from the sequence's item table."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, len(sequence.table), (len(sequence.rows), B), generator=random)
    return Target(sequence.table[rows], rows % CATEGORIES, rows)


def exported_read(
    module: LongTerm, state: State, target: Target, path: Path
) -> onnxruntime.InferenceSession:
    """`read` of one request as an ONNX graph, sizes L and B left open."""
    names, values = list(state), [part.detach() for part in state.values()]
    reader = _Reader(module, names).eval()
    rows = [torch.export.Dim.AUTO if len(value) > 1 else None for value in values]
    with warnings.catch_warnings():  # the exporter warns of its own dependencies
        warnings.simplefilter("ignore")
        torch.onnx.export(
            reader,
            (tuple(values), target.embeddings.detach()),
            str(path),
            input_names=[*names, "candidates"],
            output_names=["long"],
            dynamic_shapes=(tuple({0: row} for row in rows), {0: torch.export.Dim.AUTO}),
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


class _Reader(nn.Module):
    def __init__(self, module: LongTerm, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, values: tuple[Tensor, ...], candidates: Tensor) -> Tensor:
        state = dict(zip(self.names, values, strict=True))
        categories = torch.zeros_like(candidates[..., 0], dtype=torch.int64)
        return self.module.read(state, Target(candidates, categories, torch.zeros_like(categories)))
