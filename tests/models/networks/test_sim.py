from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from models.data.schema import Inputs, Schema
from models.modules.layers import unit
from models.modules.long_term import LongTerm
from models.networks.din import DINLConfig
from models.networks.sim import ClusterSIM, SIMConfig, SoftSIM, cluster_items
from tests.models.networks.building import (
    CATEGORIES,
    D,
    degenerate_sequence,
    sequence_of,
    targets_of,
    tiny_inputs,
)
from tests.models.networks.candidates import known_targets, reads_alike, targets_at

Search = Literal["hard", "soft", "cluster", "cluster+"]
SEARCHES: tuple[Search, ...] = ("hard", "soft", "cluster", "cluster+")
L = 12


def sim(inputs: Inputs | None = None, **settings: object) -> LongTerm:
    torch.manual_seed(0)
    config = SIMConfig(L=L, **settings)  # type: ignore[arg-type]
    return config.build(D, inputs or tiny_inputs()).eval()


def uncategorized() -> Inputs:
    return replace(tiny_inputs(), schema=Schema())


def test_soft_with_k_of_all_is_target_attention_on_all() -> None:
    sequence = degenerate_sequence()
    target = targets_of(sequence)
    full = DINLConfig(L=L).build(D, tiny_inputs())
    for k in (L, 2 * L):
        soft = sim(search="soft", k=k)
        torch.testing.assert_close(soft(sequence, target), full(sequence, target))
        torch.testing.assert_close(soft.weights(sequence, target), full.weights(sequence, target))


def test_soft_retrieves_the_greatest_inner_products() -> None:
    sequence = sequence_of([L, L // 2], L)
    target = targets_of(sequence)
    found = sim(search="soft", k=4).retrieved(sequence, target)
    scores = (target.embeddings @ sequence.embeddings.transpose(1, 2)).detach()
    for r in range(2):
        for b in range(3):
            best = scores[r, b].masked_fill(~sequence.mask[r], -1e9).topk(4).indices
            assert set(found[r, b].nonzero().flatten().tolist()) == set(best.tolist())


def test_hard_retrieves_the_newest_of_the_same_category() -> None:
    sequence = sequence_of([L, L // 2], L)
    target = targets_of(sequence)
    found = sim(search="hard", k=2).retrieved(sequence, target)
    for r in range(2):
        for b in range(3):
            same = [
                i
                for i in range(L)
                if sequence.mask[r, i]
                and int(sequence.rows[r, i]) % CATEGORIES == int(target.categories[r, b]) > 0
            ]
            assert found[r, b].nonzero().flatten().tolist() == same[-2:]


def test_hard_without_a_hit_gives_zeros() -> None:
    sequence = sequence_of([L], L)
    sequence.rows[:] = 1
    target = targets_at(sequence, torch.tensor([[2, 6]]))
    long = sim(search="hard")(sequence, target)
    assert not long[0, 0].any()
    torch.testing.assert_close(long[0, 1], sequence.table[1])


def test_hard_goes_by_the_item_where_there_is_no_category() -> None:
    sequence = sequence_of([L], L)
    sequence.rows[0] = torch.arange(1, L + 1)
    target = targets_at(sequence, torch.tensor([[3, 29]]))
    found = sim(uncategorized(), search="hard").retrieved(sequence, target)
    assert found[0, 0].nonzero().flatten().tolist() == [2]
    assert not found[0, 1].any()


def test_a_cluster_stands_in_for_a_category() -> None:
    sequence = sequence_of([L, L // 2], L)
    target = known_targets(sequence)
    module = sim(search="cluster", clusters=3, k=L)
    assert isinstance(module, ClusterSIM)
    module.on_epoch(sequence.table)
    same = module.clusters[sequence.rows].unsqueeze(1) == module.clusters[target.rows].unsqueeze(2)
    expected = same & sequence.mask.unsqueeze(1)
    assert torch.equal(module.retrieved(sequence, target), expected)
    assert expected.any()
    assert not expected.all()


def test_before_the_first_clustering_the_newest_are_found() -> None:
    sequence = sequence_of([L], L)
    found = sim(search="cluster", k=3).retrieved(sequence, known_targets(sequence))
    assert found[0, 0].tolist() == [False] * (L - 3) + [True] * 3


def test_as_many_clusters_as_items_search_by_the_item() -> None:
    sequence = sequence_of([L, L // 2], L)
    target = known_targets(sequence)
    module = sim(search="cluster+")
    module.on_epoch(sequence.table)
    by_item = sim(uncategorized(), search="hard").retrieved(sequence, target)
    assert torch.equal(module.retrieved(sequence, target), by_item)


def test_training_clusters_anew_every_so_many_steps() -> None:
    sequence = sequence_of([L], L)
    module = sim(search="cluster", clusters=4, refresh_steps=2).train()
    assert isinstance(module, ClusterSIM)
    module.summarize(sequence)
    assert module.clusters.max() == 1
    module.summarize(sequence)
    assert module.clusters.max() == 4
    assert module.clusters[0] == 0


def test_clusters_travel_with_the_weights() -> None:
    module = sim(search="cluster", clusters=4)
    module.on_epoch(sequence_of([L], L).table)
    again = sim(search="cluster", clusters=4)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.clusters, module.clusters)  # type: ignore[arg-type]


def test_items_are_nearest_to_their_own_clusters_center() -> None:
    points = unit(torch.randn(100, D, generator=torch.Generator().manual_seed(0)))
    labels = cluster_items(3 * points, 7, iterations=100)
    centers = torch.stack([unit(points[labels == c].sum(0)) for c in range(7)])
    assert torch.equal((points @ centers.T).argmax(1), labels)


def test_items_are_clustered_alike_in_parts() -> None:
    table = torch.randn(100, D, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cluster_items(table, 7, at_once=64), cluster_items(table, 7))


@pytest.mark.parametrize("search", SEARCHES)
def test_degenerate_sequences_are_read(search: Search) -> None:
    sequence = degenerate_sequence(("action",))
    target = known_targets(sequence)
    module = sim(tiny_inputs(("action",)), search=search, k=4)
    long = module(sequence, target)
    assert long.isfinite().all()
    assert not long[3].any()
    (gradient,) = torch.autograd.grad(long.sum(), sequence.table)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("search", SEARCHES)
def test_weights_lie_on_what_is_retrieved_and_reproduce_the_reading(search: Search) -> None:
    sequence = degenerate_sequence()
    target = known_targets(sequence)
    module = sim(search=search, k=4)
    weights, found = module.weights(sequence, target), module.retrieved(sequence, target)
    assert torch.equal(weights > 0, found)
    torch.testing.assert_close(weights.sum(-1), found.any(-1).float())
    torch.testing.assert_close(weights @ sequence.embeddings, module(sequence, target))


def test_each_head_weighs_in_its_own_way() -> None:
    sequence = degenerate_sequence()
    target = targets_of(sequence)
    module = sim(search="soft", heads=2, k=5)
    long = module(sequence, target)
    assert long.shape[-1] == module.width == 2 * D
    assert not torch.allclose(long[0, :, :D], long[0, :, D:])
    weights = module.weights(sequence, target)
    mean = (long[..., :D] + long[..., D:]) / 2
    torch.testing.assert_close(weights @ sequence.embeddings, mean)


def test_the_searchs_own_prediction_pools_by_inner_products() -> None:
    sequence = degenerate_sequence(("action",))
    target = targets_of(sequence)
    module = sim(tiny_inputs(("action",)), search="soft")
    assert isinstance(module, SoftSIM)
    assert module.task is not None
    inner = target.embeddings @ module.metric @ sequence.embeddings.transpose(1, 2)
    r = inner * sequence.mask.unsqueeze(1) / sequence.mask.sum(1).clamp(min=1).view(-1, 1, 1)
    pooled = r @ sequence.embeddings
    expected = module.task(torch.cat([pooled, target.embeddings], -1)).squeeze(-1)
    torch.testing.assert_close(module.search_logits(sequence, target), expected)


def test_the_searchs_own_task_teaches_its_metric() -> None:
    sequence = degenerate_sequence()
    module = sim(search="soft")
    loss = module.auxiliary_loss(sequence, torch.Generator().manual_seed(0))
    assert loss is not None
    assert isinstance(module, SoftSIM)
    (gradient,) = torch.autograd.grad(loss, module.metric)
    assert gradient.any()


def test_no_task_without_two_behaviors() -> None:
    module, generator = sim(search="soft"), torch.Generator().manual_seed(0)
    assert module.auxiliary_loss(sequence_of([1, 1], 1), generator) is None
    lone = module.auxiliary_loss(sequence_of([1, 1], 2), generator)
    assert lone is not None
    assert float(lone.detach()) == 0
    assert (
        sim(search="soft", search_task=False).auxiliary_loss(sequence_of([5, 5], 5), generator)
        is None
    )


@pytest.mark.parametrize("search", ["soft", "cluster"])
def test_the_exported_graph_reads_alike(search: Search, tmp_path: Path) -> None:
    sequence = degenerate_sequence()
    module = sim(search=search, k=4, heads=2)
    module.on_epoch(sequence.table)
    target = known_targets(sequence)
    reads_alike(module, module.summarize(sequence), target, tmp_path / "read.onnx")
