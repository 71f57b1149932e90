"""Candidates that are known by their items, and graphs that read them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from models.modules.long_term import LongTerm, State
from models.modules.sequence import BehaviorSequence, Target
from tests.models.networks.building import CATEGORIES


def targets_at(sequence: BehaviorSequence, rows: Tensor) -> Target:
    """Candidates i64[R, B] from the sequence's item table."""
    return Target(sequence.table[rows], rows % CATEGORIES, rows)


def known_targets(sequence: BehaviorSequence, B: int = 3, seed: int = 1) -> Target:
    random = torch.Generator().manual_seed(seed)
    shape = (len(sequence.rows), B)
    return targets_at(sequence, torch.randint(1, len(sequence.table), shape, generator=random))


def reads_alike(module: LongTerm, state: State, target: Target, path: Path) -> None:
    """The exported graph reads each request as torch does, whatever its sizes L and B.

    The graph is made from the first request, cut to other sizes.
    """
    module.eval()
    names = list(state)
    candidates = list(target)
    cut = [value[0].detach()[_newest(name)] for name, value in state.items()]
    two = [part[0, :2].detach() for part in candidates]
    open_axis = torch.export.Dim.AUTO
    torch.onnx.export(
        _Reader(module, names).eval(),
        (tuple(cut), tuple(two)),
        str(path),
        input_names=[*names, "candidates", "categories", "rows"],
        output_names=["long"],
        dynamic_shapes=(
            tuple({0: open_axis} if name.startswith("sequence") else None for name in names),
            tuple({0: open_axis} for _ in two),
        ),
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = {entry.name for entry in session.get_inputs()}
    with torch.no_grad():
        expected = module.read(state, target)
    for r in range(len(expected)):
        feed = {name: value[r].detach().numpy() for name, value in state.items()}
        feed |= {
            name: part[r].detach().numpy()
            for name, part in zip(("candidates", "categories", "rows"), candidates, strict=True)
        }
        (got,) = session.run(None, {name: feed[name] for name in wanted})
        torch.testing.assert_close(torch.from_numpy(got), expected[r], atol=1e-5, rtol=0)


def _newest(name: str) -> slice:
    return slice(-5, None) if name.startswith("sequence") else slice(None)


class _Reader(nn.Module):
    def __init__(self, module: LongTerm, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, values: tuple[Tensor, ...], candidates: tuple[Tensor, ...]) -> Tensor:
        state = dict(zip(self.names, values, strict=True))
        return self.module.read(state, Target(*candidates))
