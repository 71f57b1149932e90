from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from models.modules.layers import unit
from models.modules.metric_learning import (
    Loss,
    Sampling,
    distances,
    draw_behaviors,
    n_pair_loss,
    projection_loss,
    triplet_loss,
)
from tests.models.networks.building import D, degenerate_sequence, sequence_of

LOSSES = [loss for loss in get_args(Loss) if loss != "none"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(lengths: list[int], L: int, others: int, sampling: Sampling) -> list[list[int]]:
    """Draws of 200 anchors a sequence, where there were enough behaviors."""
    mask = torch.arange(L) >= L - torch.tensor(lengths)[:, None]
    places, enough = draw_behaviors(mask, others, sampling, seeded(), anchors=200)
    assert mask.view(-1)[places[enough]].all()
    rows: list[list[int]] = places[enough].tolist()
    return rows


@pytest.mark.parametrize("sampling", get_args(Sampling))
@pytest.mark.parametrize("others", [1, 2, 6])
def test_draws_are_distinct_and_real(sampling: Sampling, others: int) -> None:
    rows = drawn([9, 7, 0, 1], 9, others, sampling)
    assert all(len(set(row)) == 1 + others for row in rows)


def test_within_a_sequence_every_behavior_is_drawn_with_every_other() -> None:
    rows = drawn([5, 2], 6, 2, "sequence")
    assert len(rows) == 200  # two behaviors are not enough
    triples = {(row[0], *sorted(row[1:])) for row in rows}
    assert len(triples) == 5 * 6
    assert {place for row in rows for place in row} == {1, 2, 3, 4, 5}


def test_neighbors_are_the_previous_and_the_next() -> None:
    rows = drawn([6, 4], 6, 2, "neighbors")
    assert all(row[1:] == [row[0] - 1, row[0] + 1] for row in rows)
    assert {row[0] for row in rows} == {1, 2, 3, 4, 9, 10}


def test_within_a_batch_behaviors_come_from_all_sequences() -> None:
    rows = drawn([2, 0, 3], 4, 2, "batch")
    assert len(rows) == 400
    real = {2, 3, 9, 10, 11}
    assert {tuple(sorted(row)) for row in rows} == {
        (a, b, c) for a in real for b in real for c in real if a < b < c
    }


def test_triplets_by_hand() -> None:
    # Original space: the anchor (1, 0) is at distance 0 from (2, 0) and 1 from (0, 1).
    originals = distances(torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]]))
    # Projected, the order is turned round: distance 1 from the positive, 0 from the negative.
    to = distances(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]]))
    assert triplet_loss(to, originals[:, 1] - originals[:, 0]).tolist() == [2.0]  # Eqs. 6, 7
    assert triplet_loss(to, 0.2).tolist() == [pytest.approx(1.2)]


def test_n_pair_is_equation_12() -> None:
    anchor, positive, negative, other = torch.randn(4, 3, generator=seeded())
    expected = math.log(
        1
        + math.exp(anchor @ negative - anchor @ positive)
        + math.exp(anchor @ other - anchor @ positive)
    )
    loss = n_pair_loss(torch.stack([anchor, positive, negative, other])[None])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["dynamic", "mse"])
def test_nothing_is_asked_where_distances_are_kept(loss: Loss) -> None:
    sequence = sequence_of([10] * 4, 12)
    turned, _ = torch.linalg.qr(torch.randn(D, D, generator=seeded()))
    value = projection_loss(sequence, turned, seeded(), loss=loss)
    assert value is not None
    assert value.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sampling", get_args(Sampling))
def test_a_loss_teaches_the_projection_alone(loss: Loss, sampling: Sampling) -> None:
    sequence = degenerate_sequence(("action",))
    projection = torch.randn(D, 4, generator=seeded(), requires_grad=True)
    value = projection_loss(
        sequence, projection, seeded(), loss=loss, sampling=sampling, margin=3.0
    )
    assert value is not None
    value.backward()  # type: ignore[no-untyped-call]
    assert projection.grad is not None
    assert projection.grad.isfinite().all()
    assert projection.grad.any()
    assert sequence.table.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_too_few_behaviors_ask_for_nothing(loss: Loss) -> None:
    sequence = sequence_of([1, 0], 3)
    value = projection_loss(sequence, torch.randn(D, 4, requires_grad=True), seeded(), loss=loss)
    assert value is not None
    assert value.item() == 0.0


def test_without_a_loss_there_is_none() -> None:
    sequence = sequence_of([5], 5)
    assert projection_loss(sequence, torch.randn(D, 4), seeded(), loss="none") is None


@pytest.mark.parametrize("loss", ["dynamic", "fixed", "n-pair-mc"])
def test_a_trained_projection_keeps_the_order_of_distances_better(loss: Loss) -> None:
    sequence = sequence_of([40] * 8, 40)
    # Embeddings that differ mostly in four directions: what can be kept in four dimensions.
    stretched = sequence.table.detach() * torch.tensor([3.0] * 4 + [0.3] * (D - 4))
    sequence.table = stretched
    W = torch.randn(D, 4, generator=seeded(), requires_grad=True)

    def kept() -> float:
        triples = torch.randint(1, len(stretched), (4000, 3), generator=seeded(5))
        behaviors = stretched[triples]
        original, projected = distances(behaviors), distances(unit(behaviors @ W.detach()))
        same = (original[:, 0] < original[:, 1]) == (projected[:, 0] < projected[:, 1])
        return float(same.float().mean())

    before = kept()
    optimizer, generator = torch.optim.Adam([W], lr=0.05), seeded(1)
    for _ in range(60):
        value = projection_loss(sequence, W, generator, loss=loss)
        assert value is not None
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert kept() > before + 0.02
