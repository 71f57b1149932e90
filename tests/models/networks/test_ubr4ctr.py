from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from infra.errors import TrainingError
from models.data.schema import Inputs
from models.modules.sequence import BehaviorSequence
from models.networks.ubr4ctr import UBR4CTR, UBR4CTRConfig, inverse_frequency
from tests.models.networks.building import (
    ITEMS,
    D,
    degenerate_sequence,
    sequence_of,
    tiny_inputs,
)
from tests.models.networks.candidates import known_targets, reads_alike, targets_at

L = 12
GENRES = np.array([[0, 0], *([i % 3 + 1, 4 * (i % 4 == 0)] for i in range(1, ITEMS + 1))])


def inputs(behavior: tuple[str, ...] = ()) -> Inputs:
    tiny = tiny_inputs(behavior)
    return replace(
        tiny,
        items={**tiny.items, "genre": GENRES.astype(np.int64)},
        heights={**tiny.heights, "item.genre": 5},
    )


def ubr4ctr(bound: Inputs | None = None, **settings: object) -> UBR4CTR:
    torch.manual_seed(0)
    config = UBR4CTRConfig(L=L, **settings)  # type: ignore[arg-type]
    return config.build(D, bound or inputs()).eval()


def selecting(module: UBR4CTR, sign: float) -> UBR4CTR:
    """The same module, its probabilities all above a half or all below."""
    with torch.no_grad():
        last = cast(torch.nn.Linear, module.selection.score[-1])
        last.weight.mul_(1e-3)
        last.bias.fill_(sign)
    return module


def expected_score(candidate: int, behavior: int) -> float:
    """The idf of everything two items share."""

    def idf(count: int) -> float:
        return float(inverse_frequency(np.array([count]), ITEMS)[0])

    items = range(1, ITEMS + 1)
    score = idf(1) * (candidate == behavior)
    if candidate % 5 and candidate % 5 == behavior % 5:
        score += idf(sum(i % 5 == candidate % 5 for i in items))
    for genre in set(GENRES[candidate]) & set(GENRES[behavior]) - {0}:
        score += idf(sum(genre in GENRES[i] for i in items))
    return score


def test_what_shares_the_rarest_features_is_retrieved_the_newer_first() -> None:
    sequence = sequence_of([L, L // 2], L)
    target = known_targets(sequence, B=6)
    found = selecting(ubr4ctr(k=4), 1.0).retrieved(sequence, target)
    rows = target.rows
    for r in range(2):
        for b in range(6):
            scores = [
                expected_score(int(rows[r, b]), int(row)) if real else 0.0
                for row, real in zip(sequence.rows[r], sequence.mask[r], strict=True)
            ]
            ranked = sorted(range(L), key=lambda i: (-round(scores[i], 4), -i))
            best = [i for i in ranked if scores[i] > 0][:4]
            assert found[r, b].nonzero().flatten().tolist() == sorted(best)


def test_a_feature_that_does_not_ask_retrieves_nothing() -> None:
    sequence = sequence_of([L], L)
    sequence.rows[0] = torch.arange(1, L + 1)
    target = targets_at(sequence, torch.tensor([[6]]))
    module = selecting(ubr4ctr(k=L), -1.0)
    probabilities = module.probabilities(target)
    asks = int(probabilities[0, 0].argmax())  # below a half all of them: the likeliest asks
    by_id, by_category = sequence.rows[0] == 6, sequence.rows[0] % 5 == 1
    by_genre = torch.from_numpy((GENRES[1 : L + 1] == 1).any(1))
    expected = (by_id, by_category, by_genre)[asks]
    assert torch.equal(module.retrieved(sequence, target)[0, 0], expected)


def test_without_attributes_the_item_asks() -> None:
    sequence = sequence_of([L], L)
    sequence.rows[0] = torch.arange(1, L + 1)
    module = ubr4ctr(replace(inputs(), items={}))
    target = targets_at(sequence, torch.tensor([[5, 30]]))
    assert module.retrieved(sequence, target)[0, 0].nonzero().flatten().tolist() == [4]
    assert not module(sequence, target)[0, 1].any()


def test_the_attention_teaches_the_selection() -> None:
    sequence = degenerate_sequence()
    target = known_targets(sequence)
    module = ubr4ctr()
    loss = (module(sequence, target) * target.embeddings.detach()).sum()
    gradients = torch.autograd.grad(loss, list(module.selection.score.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[-1].any()


def test_degenerate_sequences_are_read() -> None:
    sequence = degenerate_sequence(("action",))
    target = known_targets(sequence)
    long = ubr4ctr(inputs(("action",)), k=4)(sequence, target)
    assert long.isfinite().all()
    assert not long[3].any()
    (gradient,) = torch.autograd.grad(long.sum(), sequence.table)
    assert gradient.isfinite().all()


def test_unknown_items_have_nothing_in_common() -> None:
    sequence = BehaviorSequence(
        torch.zeros(1, L, dtype=torch.long), torch.ones(1, L) > 0, torch.randn(ITEMS + 1, D)
    )
    target = targets_at(sequence, torch.tensor([[0, 3]]))
    assert not ubr4ctr().retrieved(sequence, target).any()


def test_weights_lie_on_what_is_retrieved_and_reproduce_the_reading() -> None:
    sequence = degenerate_sequence()
    target = known_targets(sequence)
    module = ubr4ctr(k=4)
    weights, found = module.weights(sequence, target), module.retrieved(sequence, target)
    assert torch.equal(weights > 0, found)
    torch.testing.assert_close(weights.sum(-1), found.any(-1).float())
    torch.testing.assert_close(weights @ sequence.embeddings, module(sequence, target))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(TrainingError, match="heads is 3"):
        ubr4ctr(heads=3)


def test_the_exported_graph_reads_alike(tmp_path: Path) -> None:
    sequence = degenerate_sequence()
    module = ubr4ctr(k=4)
    target = known_targets(sequence)
    reads_alike(module, module.summarize(sequence), target, tmp_path / "read.onnx")
