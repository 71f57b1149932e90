from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.data.batches import Batch
from models.data.schema import Inputs, Schema
from models.features import CROSS_FEATURES, USER_FEATURES
from models.network import Network, NetworkConfig
from models.networks.din import DINConfig, DINLConfig
from models.networks.encode import EncodeConfig

ITEMS, L, B = 12, 6, 3
SCHEMA = Schema(item=("genre",), category="genre", user=("city",), behavior=("action",))


def inputs_of(schema: Schema = SCHEMA) -> Inputs:
    genres = np.zeros((ITEMS + 1, 2), np.int64)
    genres[1:, 0] = np.arange(ITEMS) % 3 + 1
    genres[1:5, 1] = 4
    cities = np.array([[1, 2], [3, 0], [0, 0]], np.int64)
    heights = {"item.genre": 5, "user.city": 4, "behavior.action": 3}
    return Inputs(schema, ITEMS, 3, {"genre": genres}, {"city": cities}, heights)


def network_of(long_term: Any = None, schema: Schema = SCHEMA, **settings: Any) -> Network:
    torch.manual_seed(0)
    inputs = inputs_of(schema)
    config = NetworkConfig(**{"d": 8, "M": 4, "hidden": (8, 4), **settings})
    long_term = long_term or DINLConfig(L=L)
    return Network(config, inputs, long_term.build(8, inputs)).eval()


def batch_of(lengths: list[int], seed: int = 0, L: int = L) -> Batch:
    random = torch.Generator().manual_seed(seed)
    R = len(lengths)
    mask = torch.arange(L) >= L - torch.tensor(lengths)[:, None]
    return Batch(
        rows=torch.randint(1, ITEMS + 1, (R, L), generator=random) * mask,
        mask=mask,
        newer=torch.zeros_like(mask),
        features={"action": torch.randint(1, 3, (R, L), generator=random) * mask},
        candidates=torch.randint(1, ITEMS + 1, (R, B), generator=random),
        user_rows={"city": torch.tensor([[1, 2], [3, 0], [0, 0]])[torch.arange(R) % 3]},
        user=torch.rand(R, len(USER_FEATURES), generator=random),
        cross=torch.rand(R, B, len(CROSS_FEATURES), generator=random),
        labels=torch.zeros(R, B),
        weights=torch.ones(R, B),
    )


def rows_of(batch: Batch, rows: slice) -> Batch:
    parts: list[Any] = [
        {name: part[rows] for name, part in value.items()}
        if isinstance(value, dict)
        else value[rows]
        for value in batch
    ]
    return Batch(*parts)


@torch.no_grad()
def test_an_item_is_its_id_and_the_mean_of_its_attributes() -> None:
    network = network_of()
    table, ids = network.item_table(), network.embedding.weight
    genre = network.item_attributes["genre"].weight
    assert isinstance(genre, torch.Tensor)
    torch.testing.assert_close(table[1], ids[1] + (genre[1] + genre[4]) / 2)
    torch.testing.assert_close(table[7], ids[7] + genre[1])  # padding is no value
    torch.testing.assert_close(table[0], ids[0])


@torch.no_grad()
def test_a_user_is_their_features_and_the_mean_of_each_attribute() -> None:
    network, batch = network_of(), batch_of([3, 3, 3])
    city = network.user_attributes["city"].weight
    assert isinstance(city, torch.Tensor)
    user = network.user(batch)
    u = len(USER_FEATURES)
    torch.testing.assert_close(user[:, :u], batch.user)
    torch.testing.assert_close(user[0, u:], (city[1] + city[2]) / 2)
    torch.testing.assert_close(user[1, u:], city[3])
    assert not user[2, u:].any()


@torch.no_grad()
def test_what_is_unknown_says_nothing_at_first() -> None:
    network = network_of()
    for table in (*network.feature_tables().values(), *network.user_tables().values()):
        assert not table[0].any()
    assert not network.embedding.weight[0].any()


@torch.no_grad()
def test_an_action_that_nobody_did_says_nothing() -> None:
    inputs = replace(inputs_of(), untaught=(0, 2))
    network = Network(NetworkConfig(d=8), inputs, DINConfig().build(8, inputs))
    taught = network.feature_tables()["action"].any(1)
    assert taught.tolist() == [False, True, False]


@torch.no_grad()
def test_behavior_features_reach_the_logits() -> None:
    network, batch = network_of(), batch_of([6, 2])
    other = batch._replace(features={"action": (3 - batch.features["action"]) * batch.mask})
    assert not torch.allclose(network(batch)[0], network(other)[0])


def test_gradients_reach_every_table() -> None:
    network = network_of()
    network(batch_of([6, 4, 2]))[0].sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("long_term", [DINConfig(), DINLConfig(L=L), EncodeConfig(L=L, K=3)])
@torch.no_grad()
def test_a_batch_is_its_requests_one_by_one(long_term: Any) -> None:
    network, batch = network_of(long_term), batch_of([6, 3, 0])
    alone = [network(rows_of(batch, slice(r, r + 1)))[0] for r in range(3)]
    torch.testing.assert_close(network(batch)[0], torch.cat(alone))


@pytest.mark.parametrize("long_term", [DINConfig(), DINLConfig(L=L), EncodeConfig(L=L, K=3)])
@torch.no_grad()
def test_padding_changes_nothing(long_term: Any) -> None:
    network, batch = network_of(long_term), batch_of([3], L=3)
    zeros = torch.zeros(1, 5, dtype=torch.long)
    padded = batch._replace(
        rows=torch.cat([zeros, batch.rows], 1),
        mask=torch.cat([zeros > 0, batch.mask], 1),
        newer=torch.cat([zeros > 0, batch.newer], 1),
        features={"action": torch.cat([zeros, batch.features["action"]], 1)},
    )
    torch.testing.assert_close(network(padded)[0], network(batch)[0])


@torch.no_grad()
def test_the_stages_apart_are_the_network() -> None:
    network, batch = network_of(EncodeConfig(L=L, K=3)), batch_of([6, 1])
    table = network.item_table()
    sequence = network.sequence(batch, table)
    recent = sequence.latest(4)
    logits = network.logits(
        network.long.summarize(sequence),
        recent.embeddings,
        recent.mask.float(),
        network.user(batch),
        network.target(batch, table),
        batch.cross,
    )
    torch.testing.assert_close(logits, network(batch)[0])


def test_a_method_without_a_loss_of_its_own_gives_none() -> None:
    batch, random = batch_of([6, 6]), torch.Generator()
    assert network_of()(batch, random)[1] is None
    assert network_of(EncodeConfig(L=L, K=3))(batch, None)[1] is None
    loss = network_of(EncodeConfig(L=L, K=3))(batch, random)[1]
    assert loss is not None
    assert loss.ndim == 0


def test_ctrs_are_those_of_what_is_ranked() -> None:
    """As many of a thousand are positive, whether all negatives were learned from or a tenth."""
    network = network_of()
    learned = torch.tensor([0.5, 10 / 109, 0.0])
    network.sampling_rate = 0.1
    ctrs = network.ctrs(torch.logit(learned))
    torch.testing.assert_close(ctrs, torch.tensor([1 / 11, 10 / 1000, 0.0]))


def test_ctrs_of_all_negatives_are_left_alone() -> None:
    logits = torch.linspace(-5, 5, 11)
    assert torch.equal(network_of().ctrs(logits), torch.sigmoid(logits))


def test_dropout_is_of_training_alone() -> None:
    network, batch = network_of(dropout=0.5), batch_of([6])
    assert torch.equal(network(batch)[0], network(batch)[0])
    network.train()
    assert not torch.equal(network(batch)[0], network(batch)[0])
