from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infra.errors import TrainingError
from models.bundle import TWINOffline
from models.modules.rounding import project
from models.modules.sequence import BehaviorSequence, Target
from models.networks.twin import TWIN, TWINConfig, search
from tests.models.networks.building import (
    D,
    degenerate_sequence,
    exported_read,
    sequence_of,
    targets_of,
    tiny_inputs,
)

FEATURES = ("action", "dwell")

VARIANTS = [
    TWINConfig(k=4, heads=2),
    TWINConfig(k=4, heads=2, cross="none"),
    TWINConfig(k=4, heads=2, cross="raw"),
    TWINConfig(k=4, heads=2, consistent=False),
    TWINConfig(k=4, heads=1, d_k=3),
    TWINConfig(k=50, heads=2),
]


def built(config: TWINConfig, behavior: tuple[str, ...] = FEATURES) -> TWIN:
    """A module whose parameters are random, as after training."""
    torch.manual_seed(0)
    module = config.build(D, tiny_inputs(behavior))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=D**-0.5)
    return module


def scores_by_hand(module: TWIN, sequence: BehaviorSequence, target: Target) -> Tensor:
    """Eq. 6, head by head; [R, heads, B, L]."""
    d_k, relevance = module.relevance.d_k, module.relevance
    heads = []
    for head in range(module.config.heads):
        columns = slice(head * d_k, (head + 1) * d_k)
        query = relevance.query[:, columns] / d_k**0.5
        queries = project(target.embeddings, query, 1)
        keys = project(sequence.items, relevance.key[:, columns], 1)
        scores = queries @ keys.mT
        if relevance.compression is not None and relevance.beta is not None:
            for j, name in enumerate(FEATURES):
                weight = relevance.compression[j, :, head : head + 1] * relevance.beta[j]
                cross = sequence.feature_tables[name][sequence.features[name]]
                scores = scores + project(cross, weight, 1).mT
        heads.append(scores)
    return torch.stack(heads, dim=1)


def attention_by_hand(module: TWIN, sequence: BehaviorSequence, target: Target) -> Tensor:
    """Eqs. 7 and 8 over all behaviors."""
    d_k = module.relevance.d_k
    scores = scores_by_hand(module, sequence, target)
    weights = scores.masked_fill(~sequence.mask[:, None, None], -1e30).softmax(-1)
    values = [
        weights[:, head] @ (sequence.embeddings @ module.value[:, head * d_k : (head + 1) * d_k])
        for head in range(module.config.heads)
    ]
    return torch.cat(values, dim=-1) @ module.out


@pytest.mark.parametrize("k", [20, 500])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_search_for_all_is_full_attention(k: int, heads: int) -> None:
    module = built(TWINConfig(k=k, heads=heads))
    sequence = sequence_of([20, 7, 1], 20, FEATURES)
    target = targets_of(sequence)
    torch.testing.assert_close(
        module(sequence, target), attention_by_hand(module, sequence, target)
    )
    assert torch.equal(
        module.retrieved(sequence, target), sequence.mask.unsqueeze(1).expand(-1, 3, -1)
    )


def test_a_search_that_lets_everything_through_changes_nothing() -> None:
    mask = sequence_of([20, 7, 0], 20).mask.unsqueeze(1)
    scores = torch.randn(3, 4, 2, 20)
    assert torch.equal(search(scores, mask, 20), mask.expand(-1, 2, -1))
    assert torch.equal(search(scores, mask, 100), mask.expand(-1, 2, -1))


def test_search_takes_the_heads_in_turns() -> None:
    torch.manual_seed(0)
    scores, mask = torch.randn(2, 4, 3, 40), sequence_of([40, 9], 40).mask.unsqueeze(1)
    found = search(scores, mask, 10)
    for r in range(2):
        places = torch.nonzero(mask[r, 0])[:, 0].tolist()
        for b in range(3):
            rankings = [sorted(places, key=lambda i, h=h: -scores[r, h, b, i]) for h in range(4)]  # type: ignore[misc]
            turns = [ranking[turn] for turn in range(len(places)) for ranking in rankings]
            wanted = list(dict.fromkeys(turns))[:10]
            assert torch.nonzero(found[r, b])[:, 0].tolist() == sorted(wanted)


def test_search_of_equal_scores_takes_the_newest() -> None:
    found = search(torch.zeros(2, 1, 30), torch.ones(1, 30, dtype=torch.bool), 5)
    assert torch.nonzero(found[0])[:, 0].tolist() == [25, 26, 27, 28, 29]


def test_search_and_attention_rank_alike() -> None:
    """Consistency: with one head the search finds the k behaviors of greatest weight."""
    module = built(TWINConfig(k=6, heads=1))
    full = built(TWINConfig(k=30, heads=1))
    full.load_state_dict(module.state_dict())
    sequence = sequence_of([30, 12], 30, FEATURES)
    target = targets_of(sequence)
    best = full.weights(sequence, target).topk(6).indices
    wanted = torch.zeros(2, 3, 30, dtype=torch.bool).scatter(-1, best, value=True)
    assert torch.equal(module.retrieved(sequence, target), wanted)


def test_attention_sees_what_the_search_found_alone() -> None:
    module = built(TWINConfig(k=5, heads=2))
    sequence = sequence_of([20], 20, FEATURES)
    target = targets_of(sequence, B=1)
    found = module.retrieved(sequence, target)[:, 0]
    left = BehaviorSequence(
        sequence.rows,
        found,
        sequence.table,
        features=sequence.features,
        feature_tables=sequence.feature_tables,
    )
    assert int(found.sum()) == 5
    torch.testing.assert_close(module(sequence, target), attention_by_hand(module, left, target))


def test_without_behavior_features_there_is_no_bias() -> None:
    module = built(TWINConfig(k=4, heads=2), ())
    sequence = sequence_of([12, 3], 12)
    state = module.summarize(sequence)
    assert sorted(state) == ["behavior_mask", "keys", "values"]
    assert not any("compression" in name for name, _ in module.named_parameters())
    assert module.read(state, targets_of(sequence)).isfinite().all()


def test_no_cross_features_at_all_gives_what_a_schema_without_them_gives() -> None:
    without = built(TWINConfig(k=4, heads=2, cross="none"))
    bare = built(TWINConfig(k=4, heads=2), ())
    bare.load_state_dict(without.state_dict())
    sequence = sequence_of([12, 3], 12, FEATURES)
    items = BehaviorSequence(sequence.rows, sequence.mask, sequence.table)
    target = targets_of(sequence)
    torch.testing.assert_close(without(sequence, target), bare(items, target))


def test_raw_attention_has_cross_features_in_its_keys() -> None:
    module = built(TWINConfig(k=4, heads=2, cross="raw"))
    sequence = sequence_of([12, 3], 12, FEATURES)
    keys, _ = module.project_sequence(sequence)
    assert keys.bias is None
    torch.testing.assert_close(
        keys.projected, sequence.embeddings @ module.relevance.key, atol=1e-5, rtol=1e-4
    )


def test_search_with_parameters_of_its_own_finds_others() -> None:
    module = built(TWINConfig(k=4, heads=2, consistent=False))
    sequence = sequence_of([20], 20, FEATURES)
    target = targets_of(sequence)
    other = module.retrieved(sequence, target)
    assert module.search is not None
    module.search.load_state_dict(module.relevance.state_dict())
    same = module.retrieved(sequence, target)
    consistent = built(TWINConfig(k=4, heads=2))
    consistent.load_state_dict(module.state_dict(), strict=False)
    assert torch.equal(same, consistent.retrieved(sequence, target))
    assert not torch.equal(other, same)


def test_parameters_of_the_search_learn_from_the_auxiliary_loss_alone() -> None:
    module = built(TWINConfig(k=4, heads=2, consistent=False))
    sequence = sequence_of([20, 8, 1], 20, FEATURES)
    names = [name for name, _ in module.named_parameters()]
    searching = [name.startswith("search") for name in names]
    module(sequence, targets_of(sequence)).square().sum().backward()
    trained = [parameter.grad is not None for parameter in module.parameters()]
    assert trained == [not own for own in searching]
    assert sequence.table.grad is not None

    module.zero_grad()
    sequence.table.grad = None
    loss = module.auxiliary_loss(sequence, torch.Generator())
    assert loss is not None
    torch.autograd.backward(loss)
    trained = [parameter.grad is not None for parameter in module.parameters()]
    assert trained == searching
    assert sequence.table.grad is None
    assert sequence.mask[:, -1].all()


def test_auxiliary_loss_needs_two_requests_and_parameters_of_its_own() -> None:
    generator = torch.Generator()
    sequence = sequence_of([20, 1, 0], 20, FEATURES)
    separate = built(TWINConfig(consistent=False, heads=2))
    assert separate.auxiliary_loss(sequence, generator) is None
    sequence = sequence_of([20, 9], 20, FEATURES)
    assert built(TWINConfig(heads=2)).auxiliary_loss(sequence, generator) is None


@pytest.mark.parametrize("config", VARIANTS)
def test_weights_sum_to_1_over_what_was_retrieved(config: TWINConfig) -> None:
    module, sequence = built(config), degenerate_sequence(FEATURES)
    target = targets_of(sequence)
    weights, found = module.weights(sequence, target), module.retrieved(sequence, target)
    some = sequence.mask.any(1).float()[:, None].expand(-1, 3)
    torch.testing.assert_close(weights.sum(-1), some)
    assert (weights[~found] == 0).all()
    wanted = sequence.mask.sum(1).clamp(max=config.k)[:, None].expand(-1, 3)
    assert torch.equal(found.sum(-1), wanted)


@pytest.mark.parametrize("config", VARIANTS)
def test_degenerate_sequences_give_finite_interests_and_gradients(config: TWINConfig) -> None:
    module, sequence = built(config), degenerate_sequence(FEATURES)
    interest = module(sequence, targets_of(sequence))
    interest.square().sum().backward()
    assert interest.isfinite().all()
    assert not interest[3].any()
    assert sequence.table.grad is not None
    assert sequence.table.grad.isfinite().all()


def test_padding_changes_nothing() -> None:
    module, padded = built(TWINConfig(k=3, heads=2)), sequence_of([5], 12, FEATURES)
    target = targets_of(padded)
    torch.testing.assert_close(module(padded.latest(5), target), module(padded, target))


@pytest.mark.parametrize("config", VARIANTS[:4])
def test_exported_read_agrees(config: TWINConfig, tmp_path: Path) -> None:
    module, sequence = built(config), degenerate_sequence(FEATURES)
    state, target = module.summarize(sequence), targets_of(sequence, B=4)
    states = [{name: part[r].detach() for name, part in state.items()} for r in range(5)]
    # A graph keeps no axis that it was given with one row; a shorter sequence is fewer rows.
    states += [{name: part[-2:] for name, part in states[0].items()}]
    first = Target(*(part[0] for part in target))
    session = exported_read(module, states[0], first, tmp_path / "read.onnx")
    every = torch.arange(len(sequence.table))
    everything = Target(sequence.table, torch.zeros_like(every), every)
    for stored in states:
        feed = {name: part.numpy() for name, part in stored.items()}
        feed = {item.name: feed[item.name] for item in session.get_inputs()[:-1]}
        feed["candidates"] = everything.embeddings.detach().numpy()
        (found,) = session.run(None, feed)
        expected = module.read(stored, everything).detach()
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [TWINConfig(heads=2, cross="raw"), TWINConfig(heads=2, consistent=False)],
)
def test_keys_of_behaviors_and_a_search_of_its_own_are_not_served(config: TWINConfig) -> None:
    module = built(config, ("action",))
    assert module.served(half=False, feature_tables={"action": torch.randn(4, D)}) is None


def test_its_biases_are_served() -> None:
    module = built(TWINConfig(k=4, heads=2), ("action",))
    sequence = sequence_of([12], 12, ("action",))
    served = module.served(half=False, feature_tables=sequence.feature_tables)
    assert served is not None
    assert isinstance(served.offline, TWINOffline)
    biases = torch.tensor(served.offline.biases)
    expected = module.summarize(sequence)["bias"]
    torch.testing.assert_close(biases[sequence.features["action"]], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (TWINConfig(k=0), "twin needs k >= 1"),
        (TWINConfig(heads=0), "twin needs k >= 1, heads >= 1"),
        (TWINConfig(heads=3), "heads of twin must divide d = 8, not 3; or set d_k"),
    ],
)
def test_wrong_sizes_are_told(config: TWINConfig, wrong: str) -> None:
    with pytest.raises(TrainingError, match=wrong):
        config.build(D, tiny_inputs())
