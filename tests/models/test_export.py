from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from infra.errors import TrainingError
from models.bundle import SCORER_INPUTS, make_session
from models.encode import Encode, EncodeConfig, Scorer
from models.export import (
    EXPORT_TOLERANCE,
    OPSET,
    export,
    export_network,
    export_scorer,
    golden_requests,
)

POPULARITY = np.zeros(31, np.float32)
NAMES = ["", *(f"item-{i}" for i in range(1, 31))]


def make_network() -> Encode:
    torch.manual_seed(3)
    config = EncodeConfig(n_items=30, d=8, m=3, K=4, L=40, M=6, beta=0.1, hidden=(16, 8))
    network = Encode(config).eval()
    with torch.no_grad():  # an untrained network is nearly constant: make all of it matter
        for parameter in network.parameters():
            parameter.normal_(std=0.7)
    return network


@pytest.fixture(scope="module")
def network() -> Encode:
    return make_network()


@pytest.fixture(scope="module")
def model(network: Encode) -> bytes:
    return export_scorer(network)


@pytest.mark.parametrize(
    ("K", "M", "B"), [(1, 1, 1), (1, 6, 30), (4, 3, 0), (9, 6, 3000), (70, 2, 2)]
)
def test_the_graph_agrees_with_the_network_at_any_size(
    network: Encode, model: bytes, K: int, M: int, B: int
) -> None:
    rng = np.random.default_rng(K)
    u = network.tower.user.in_features
    c = network.tower.pair.in_features - 5 * 8
    feed = {
        "interests": rng.normal(size=(K, 8)),
        "interest_mask": rng.integers(0, 2, K),
        "recent": rng.normal(size=(M, 8)),
        "recent_mask": rng.integers(0, 2, M),
        "user": rng.random(u),
        "candidates": rng.normal(size=(B, 8)),
        "cross": rng.random((B, c)),
    }
    feed = {name: values.astype(np.float32) for name, values in feed.items()}
    (ctr,) = make_session(model).run(None, feed)
    with torch.no_grad():
        expected = Scorer(network)(*(torch.from_numpy(feed[name]) for name in SCORER_INPUTS))
    np.testing.assert_allclose(ctr, expected.numpy(), atol=EXPORT_TOLERANCE)


def test_degenerate_requests_are_among_the_golden_ones(network: Encode, model: bytes) -> None:
    golden = golden_requests(network, seed=0)
    assert {request.name for request in golden} >= {
        "no behavior",
        "one behavior",
        "all alike",
        "padded",
        "all zero",
    }
    session = make_session(model)
    for request in golden:
        (ctr,) = session.run(None, request.feed())
        np.testing.assert_allclose(ctr, request.ctr.array(), atol=EXPORT_TOLERANCE)


def test_golden_ctrs_are_of_the_network_and_not_all_the_same(network: Encode) -> None:
    full = golden_requests(network, seed=0)[0]
    assert full.ctr.array().std() > 0.01


def test_the_graph_is_pinned_and_says_nothing_of_where_it_was_made(model: bytes) -> None:
    graph = onnx.load_from_string(model)
    assert [entry.version for entry in graph.opset_import if entry.domain in {"", "ai.onnx"}] == [
        OPSET
    ]
    assert str(Path(__file__).resolve().parents[2]).encode() not in model


def test_the_user_enters_the_first_layer_once(network: Encode, model: bytes) -> None:
    """Its product has one row, not one a candidate."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    consumers = [node for node in graph.node if "user" in node.input]
    assert [node.op_type for node in consumers] in (["Unsqueeze"], ["Gemm"], ["MatMul"])


def test_the_same_network_gives_the_same_bytes(network: Encode, model: bytes) -> None:
    assert export_scorer(network) == model


def test_a_network_that_diverged_is_not_exported() -> None:
    network = make_network()
    with torch.no_grad():
        network.projection[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="differ from the network"):
        export_network(network, name="broken", item_ids=NAMES, titles=NAMES, popularity=POPULARITY)


def test_no_run_to_export_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no finished training run") as caught:
        export(tmp_path / "nowhere", tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_extreme_embeddings_leave_finite_ctrs(network: Encode, model: bytes) -> None:
    golden = golden_requests(network, seed=0)[0].feed()
    for factor in (0.0, 1e-20, 1e6):
        (ctr,) = make_session(model).run(
            None, {**golden, "interests": golden["interests"] * np.float32(factor)}
        )
        assert np.isfinite(ctr).all()


def test_the_bundle_says_how_beta_was_used(network: Encode) -> None:
    contents, checks = export_network(
        network, name="named", item_ids=NAMES, titles=NAMES, popularity=POPULARITY
    )
    assert contents.manifest.beta_mode == "divide"
    assert contents.manifest.scale == pytest.approx(10.0)
    assert checks.max_ctr_difference <= EXPORT_TOLERANCE
