from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from infra.errors import TrainingError
from models.bundle import BundleContents, make_session
from models.config import RunConfig
from models.export import (
    EXPORT_TOLERANCE,
    OPSET,
    ExportChecks,
    export,
    export_network,
    export_scorer,
    golden_requests,
)
from models.network import Network, NetworkConfig
from models.networks.encode import EncodeConfig
from models.schema import Inputs, Schema
from models.training import make_network

ITEMS, GENRES, CITIES = 30, 5, 4
NAMES = ["", *(f"item-{i}" for i in range(1, ITEMS + 1))]
POPULARITY = np.array([0.0, *(1e6 / ITEMS for _ in range(ITEMS))], np.float32)
ENCODE = EncodeConfig(m=3, K=4, L=40, beta=0.1)


def config_of(long_term: Any = ENCODE, schema: Schema = Schema(), M: int = 6) -> RunConfig:  # noqa: B008 - frozen
    network = NetworkConfig(d=8, M=M, hidden=(16, 8))
    return RunConfig(name="tiny", network=network, long_term=long_term, schema=schema)


def network_of(config: RunConfig) -> Network:
    """A network in which everything matters: an untrained one is nearly constant."""
    genres = np.arange(ITEMS + 1, dtype=np.int64)[:, None] % GENRES
    heights = {"item.genre": GENRES, "user.city": CITIES, "behavior.action": 3, "behavior.age": 24}
    cities = np.arange(1, CITIES, dtype=np.int64)[:, None]
    inputs = Inputs(config.schema, ITEMS, CITIES - 1, {"genre": genres}, {"city": cities}, heights)
    network = make_network(config, inputs).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    return network


def exported(network: Network, config: RunConfig) -> tuple[BundleContents, ExportChecks]:
    return export_network(
        network, config, item_ids=NAMES, titles=NAMES, popularity=POPULARITY, metrics={"auc": 0.7}
    )


@pytest.fixture(scope="module")
def network() -> Network:
    return network_of(config_of())


@pytest.fixture(scope="module")
def model(network: Network) -> bytes:
    return export_scorer(network, network.item_table().detach())


def test_the_graph_is_pinned_and_says_nothing_of_where_it_was_made(model: bytes) -> None:
    graph = onnx.load_from_string(model)
    assert [entry.version for entry in graph.opset_import if entry.domain in {"", "ai.onnx"}] == [
        OPSET
    ]
    assert str(Path(__file__).resolve().parents[2]).encode() not in model


def test_the_user_enters_the_first_layer_once(model: bytes) -> None:
    """Its product has one row, not one a candidate."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    consumers = [node for node in graph.node if "user" in node.input]
    assert [node.op_type for node in consumers] in (["Unsqueeze"], ["Gemm"], ["MatMul"])


def test_the_same_network_gives_the_same_bytes(network: Network, model: bytes) -> None:
    assert export_scorer(network, network.item_table().detach()) == model


def test_a_network_that_diverged_is_not_exported() -> None:
    config = config_of()
    network = network_of(config)
    with torch.no_grad():
        network.tower.out.bias[0] = torch.nan
    with pytest.raises(TrainingError, match="differ from the network by nan") as caught:
        exported(network, config)
    assert "\n" not in str(caught.value)


def test_no_run_to_export_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no finished training run") as caught:
        export(tmp_path / "nowhere", tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_golden_ctrs_are_of_the_network_and_not_all_the_same(network: Network) -> None:
    full = golden_requests(network, network.item_table().detach(), seed=0)[0]
    assert full.ctr.array().std() > 0.01


def test_extreme_embeddings_leave_finite_ctrs(network: Network, model: bytes) -> None:
    golden = golden_requests(network, network.item_table().detach(), seed=0)[0].feed()
    for factor in (0.0, 1e-20, 1e6):
        (ctr,) = make_session(model).run(
            None, {**golden, "interests": golden["interests"] * np.float32(factor)}
        )
        assert np.isfinite(ctr).all()


def test_the_bundle_says_how_beta_was_used(network: Network) -> None:
    contents, checks = exported(network, config_of())
    assert contents.manifest.beta_mode == "divide"
    assert contents.manifest.scale == pytest.approx(10.0)
    assert checks.max_ctr_difference <= EXPORT_TOLERANCE
