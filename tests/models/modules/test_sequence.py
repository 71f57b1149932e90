from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.modules.layers import unit
from models.modules.sequence import BehaviorSequence
from tests.models.networks.building import D, sequence_of

FEATURES = ("action", "age")


@pytest.fixture(params=[(), FEATURES], ids=["items alone", "with features"])
def sequence(request: pytest.FixtureRequest) -> BehaviorSequence:
    return sequence_of([6, 3, 1, 0], 6, request.param)


def by_hand(sequence: BehaviorSequence) -> Tensor:
    """An embedding is the sum of the item's and of the features'."""
    out = sequence.table[sequence.rows]
    for name, rows in sequence.features.items():
        out = out + sequence.feature_tables[name][rows]
    return out


def test_an_embedding_is_the_sum_of_what_is_known(sequence: BehaviorSequence) -> None:
    torch.testing.assert_close(sequence.embeddings, by_hand(sequence))
    torch.testing.assert_close(sequence.items, sequence.table[sequence.rows])


def test_a_projection_of_the_tables_is_one_of_the_embeddings(sequence: BehaviorSequence) -> None:
    weight = torch.randn(D, 3, generator=torch.Generator().manual_seed(1))
    embeddings = by_hand(sequence)
    torch.testing.assert_close(sequence.project(weight), embeddings @ weight)
    torch.testing.assert_close(sequence.directions(weight), unit(embeddings @ weight))
    of_items = sequence.table[sequence.rows] @ weight
    torch.testing.assert_close(sequence.project_items(weight), of_items)


def test_pooling_sums_embeddings_and_teaches_every_table(sequence: BehaviorSequence) -> None:
    random = torch.Generator().manual_seed(2)
    bins = torch.randint(0, 3, sequence.rows.shape, generator=random)
    weights = torch.rand(sequence.rows.shape, generator=random) * sequence.mask
    weights.requires_grad_()
    places = torch.nn.functional.one_hot(bins, 3).float()
    expected = (places * weights.unsqueeze(-1)).transpose(1, 2) @ by_hand(sequence)
    pooled = sequence.pool_into(bins, weights, 3)
    torch.testing.assert_close(pooled, expected)
    leaves = [sequence.table, *sequence.feature_tables.values()]
    mine = torch.autograd.grad(pooled.square().sum(), [*leaves, weights])
    theirs = torch.autograd.grad(expected.square().sum(), [*leaves, weights])
    for gradient, other in zip(mine[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine[-1], theirs[-1] * sequence.mask, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [2, 6, 50])
def test_the_latest_are_the_end_of_each(sequence: BehaviorSequence, size: int) -> None:
    sequence.newer = sequence.mask
    latest = sequence.latest(size)
    torch.testing.assert_close(latest.embeddings, by_hand(sequence)[:, -size:])
    assert torch.equal(latest.mask, sequence.mask[:, -size:])
    assert torch.equal(latest.categories, sequence.categories[:, -size:])
    assert latest.newer is not None
    assert torch.equal(latest.newer, sequence.mask[:, -size:])


def test_padding_has_no_category() -> None:
    sequence = sequence_of([2], 4)
    assert sequence.categories[0, :2].tolist() == [0, 0]
    plain = BehaviorSequence(sequence.rows, sequence.mask, sequence.table)
    assert not plain.categories.any()
