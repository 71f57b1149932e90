from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch

from infra.errors import BundleIncompatible, TrainingError
from models.bundle import Bundle, BundleContents, EncodeOffline, make_session, save_bundle
from models.config import RunConfig
from models.data.batches import Batch
from models.data.schema import Inputs, Schema
from models.export import (
    EXPORT_TOLERANCE,
    OPSET,
    ExportChecks,
    check_reference,
    export,
    export_network,
    export_scorer,
    golden_requests,
    served_as,
    with_reference,
)
from models.features import CROSS_FEATURES, USER_FEATURES
from models.network import Network, NetworkConfig
from models.networks import AnyConfig
from models.networks.din import DINConfig, DINLConfig
from models.networks.encode import EncodeConfig
from models.networks.sim import SIMConfig
from models.prediction import make_network
from models.runs import Run, Vocabulary
from tests.bundles import tiny_config, tiny_network

ITEMS, GENRES, CITIES = 30, 5, 4
NAMES = ["", *(f"item-{i}" for i in range(1, ITEMS + 1))]
POPULARITY = np.array([0.0, *(1e6 / ITEMS for _ in range(ITEMS))], np.float32)
ENCODE = EncodeConfig(m=3, K=4, L=40, beta=0.1, beta_mode="divide")


def config_of(long_term: Any = ENCODE, schema: Schema | None = None, M: int = 6) -> RunConfig:
    network = NetworkConfig(d=8, M=M, hidden=(16, 8))
    return RunConfig(name="tiny", network=network, long_term=long_term, schema=schema or Schema())


def network_of(config: RunConfig) -> Network:
    """A network in which everything matters: an untrained one is nearly constant."""
    genres = np.arange(ITEMS + 1, dtype=np.int64)[:, None] % GENRES
    heights = {"item.genre": GENRES, "user.city": CITIES, "behavior.action": 3, "behavior.age": 24}
    cities = np.arange(1, CITIES, dtype=np.int64)[:, None]
    actions = ("answered right", "answered wrong")
    inputs = Inputs(
        config.schema, ITEMS, CITIES - 1, {"genre": genres}, {"city": cities}, heights, actions
    )
    network = make_network(config, inputs).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    return network


def exported(network: Network, config: RunConfig) -> tuple[BundleContents, ExportChecks]:
    return export_network(network, config, item_ids=NAMES, titles=NAMES, popularity=POPULARITY)


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


def test_the_user_s_features_are_columns_of_the_first_layer_s_product(model: bytes) -> None:
    """A term of its sum would be a pass over the whole layer."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    consumers = [node for node in graph.node if "user" in node.input]
    assert [node.op_type for node in consumers] == ["Concat"]


def test_the_same_network_gives_the_same_bytes(network: Network, model: bytes) -> None:
    assert export_scorer(network, network.item_table().detach()) == model


def test_a_network_that_diverged_is_not_exported() -> None:
    config = config_of()
    network = network_of(config)
    with torch.no_grad():
        network.tower.out.bias[0] = torch.nan
    with pytest.raises(TrainingError, match="it has diverged") as caught:
        exported(network, config)
    assert "\n" not in str(caught.value)


def run_of(long_term: Any, schema: Schema | None = None, names: list[str] = NAMES) -> Run:
    config = config_of(long_term, schema)
    network = network_of(config)
    vocabulary = Vocabulary(names, names, POPULARITY.tolist())
    return Run(config, network, network.inputs, vocabulary, {}, {}, 0, [])


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (run_of(ENCODE), "not a run of din-l"),
        (run_of(DINLConfig(L=40, attention="mlp")), "not a run of din-l"),
        (run_of(DINLConfig(L=40), names=NAMES[::-1]), "learned from other data"),
        (run_of(DINLConfig(L=40), Schema(behavior=("age",))), "sees schema.behavior = age"),
        (run_of(DINLConfig(L=30)), "sees L = 30 behaviors"),
    ],
)
def test_a_run_that_is_no_reference_is_refused_in_one_line(reference: Run, words: str) -> None:
    with pytest.raises(TrainingError, match=words) as caught:
        check_reference(reference, run_of(ENCODE))
    assert "\n" not in str(caught.value)


def test_a_reference_s_attention_is_on_the_items_of_the_bundle(tmp_path: Path) -> None:
    config = config_of()
    popularity = POPULARITY.copy()
    popularity[5] = 0  # which the bundle leaves out
    contents, _ = export_network(
        network_of(config), config, item_ids=NAMES, titles=NAMES, popularity=popularity
    )
    run = run_of(DINLConfig(L=40), Schema(behavior=("action",)))
    check_reference(run, run_of(ENCODE))
    save_bundle(with_reference(contents, run), tmp_path / "bundle")
    reference = Bundle.load(tmp_path / "bundle").reference
    assert reference is not None
    assert reference.actions is not None
    table = run.network.item_table().detach().numpy()
    np.testing.assert_array_equal(reference.keys, np.delete(table, 5, axis=0))
    assert reference.queries.shape == reference.keys.shape
    assert reference.actions.shape == (3, 8)


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


def variants() -> list[Any]:
    """Every method as it comes, in small, and the forms of it that go online another way."""
    small = {"L": 40, "m": 3, "K": 4, "k": 5, "slots": 2, "heads": 2}
    configs: list[Any] = []
    for kind in get_args(AnyConfig):
        known = set(kind.__struct_fields__)
        configs.append(kind(**{name: size for name, size in small.items() if name in known}))
    return [
        *configs,
        EncodeConfig(L=40, m=3, K=4, online="dot"),
        SIMConfig(L=40, k=5, search="hard"),
        SIMConfig(L=40, k=5, search="cluster", clusters=4),
    ]


EVERY = {f"{config.__struct_config__.tag}-{i}": config for i, config in enumerate(variants())}


@pytest.fixture(scope="module", params=list(EVERY.values()), ids=list(EVERY))
def method(request: pytest.FixtureRequest) -> tuple[Network, RunConfig, BundleContents]:
    """A method's network and its bundle; the schema has all that a schema may have."""
    schema = Schema(item=("genre",), category="genre", user=("city",), behavior=("action", "age"))
    config = config_of(request.param, schema)
    network = network_of(config)
    contents, checks = exported(network, config)
    assert checks.requests == len(contents.golden)
    assert checks.max_ctr_difference <= EXPORT_TOLERANCE
    assert checks.max_item_difference <= EXPORT_TOLERANCE
    return network, config, contents


def test_every_method_agrees_with_its_graph_on_degenerate_requests(
    method: tuple[Network, RunConfig, BundleContents],
) -> None:
    _, config, contents = method
    assert {request.name for request in contents.golden} >= {
        "full",
        "newer behaviors",
        "no behavior",
        "one behavior",
        "one candidate",
        "padded",
        "all alike",
    }
    session = make_session(contents.scorer_model)
    wanted = {node.name for node in session.get_inputs()}
    for request in contents.golden:
        feed = {name: values for name, values in request.feed().items() if name in wanted}
        (ctr,) = session.run(None, feed)
        assert np.isfinite(ctr).all(), request.name
        np.testing.assert_allclose(
            ctr, request.ctr.array(), atol=EXPORT_TOLERANCE, err_msg=request.name
        )
    assert contents.manifest.system == config.long_term.__struct_config__.tag


def test_more_combinations_of_features_than_a_row_holds_are_refused() -> None:
    config = tiny_config(system="twin", behavior=("action", "dwell", "age"))
    network = tiny_network(3, config, tuple(f"action-{number}" for number in range(200)))
    ids, popularity = ["", "a", "b", "c"], np.array([0, 1, 1, 1], np.float32)
    with pytest.raises(TrainingError, match="has 77,184 combinations, and a bundle 65,536 at most"):
        export_network(network, config, item_ids=ids, titles=ids, popularity=popularity)


def test_ages_are_not_served_where_a_state_would_keep_them() -> None:
    for system, served in (("encode", False), ("sdim", False), ("twin", True)):
        network = tiny_network(3, tiny_config(system=system, behavior=("age",)))
        assert (served_as(network) is not None) == served


@pytest.mark.parametrize(("L", "B"), [(1, 1), (7, 3), (40, 300), (90, 2)])
def test_every_method_agrees_with_its_graph_at_any_size(
    method: tuple[Network, RunConfig, BundleContents], L: int, B: int
) -> None:
    """What a network gives for a batch of one is what its graph gives for the stored state."""
    network, _, contents = method
    random = torch.Generator().manual_seed(L)
    heights = network.inputs.heights
    batch = Batch(
        rows=torch.randint(0, ITEMS + 1, (1, L), generator=random),
        mask=torch.ones(1, L, dtype=torch.bool),
        newer=torch.zeros(1, L, dtype=torch.bool),
        features={
            name: torch.randint(0, heights[f"behavior.{name}"], (1, L), generator=random)
            for name in network.inputs.schema.behaviors
        },
        candidates=torch.randint(0, ITEMS + 1, (1, B), generator=random),
        user_rows={"city": torch.tensor([[2]])},
        user=torch.rand(1, len(USER_FEATURES), generator=random),
        cross=torch.rand(1, B, len(CROSS_FEATURES), generator=random),
        labels=torch.zeros(1, B),
        weights=torch.ones(1, B),
    )
    with torch.no_grad():
        expected = torch.sigmoid(network(batch)[0])[0]
        table = network.item_table()
        sequence, target = network.sequence(batch, table), network.target(batch, table)
        state = network.long.summarize(sequence)
        recent = sequence.latest(network.config.M)
        inputs = {
            **state,
            "recent": recent.embeddings,
            "recent_mask": recent.mask.float(),
            "user": network.user(batch),
            "candidates": target.embeddings,
            "cross": batch.cross,
            "candidate_categories": target.categories,
            "candidate_rows": target.rows,
        }
    session = make_session(contents.scorer_model)
    feed = {node.name: inputs[node.name][0].numpy() for node in session.get_inputs()}
    (ctr,) = session.run(None, feed)
    np.testing.assert_allclose(ctr, expected.numpy(), atol=EXPORT_TOLERANCE)


def test_a_state_is_of_the_shape_that_the_manifest_says(
    method: tuple[Network, RunConfig, BundleContents],
) -> None:
    _, _, contents = method
    feed = contents.golden[0].feed()
    for name, tensor in contents.manifest.state.items():
        assert feed[name].dtype == tensor.dtype
        assert len(feed[name].shape) == len(tensor.shape)
        for size, said in zip(feed[name].shape, tensor.shape, strict=True):
            assert said in {-1, size}


def test_the_manifest_names_the_actions_in_the_order_of_their_codes(
    method: tuple[Network, RunConfig, BundleContents],
) -> None:
    _, _, contents = method
    assert contents.manifest.actions == ("answered right", "answered wrong")


def test_the_graph_over_the_items_says_what_the_network_does(
    method: tuple[Network, RunConfig, BundleContents],
) -> None:
    network, _, contents = method
    with torch.no_grad():
        expected = network.long.per_item(torch.from_numpy(contents.embeddings))
    if contents.projection_model is None:
        assert not expected
        return
    session = make_session(contents.projection_model)
    for rows in (slice(None), slice(0, 1), slice(5, 12)):
        computed = session.run(list(expected), {"embeddings": contents.embeddings[rows]})
        for found, wanted in zip(computed, expected.values(), strict=True):
            np.testing.assert_allclose(found, wanted[rows].numpy(), atol=EXPORT_TOLERANCE)


def test_a_network_that_sees_what_no_service_has_is_refused(
    method: tuple[Network, RunConfig, BundleContents], tmp_path: Path
) -> None:
    _, _, contents = method
    save_bundle(contents, tmp_path / "bundle")
    words = "sees schema.user = city, which the services do not have"
    with pytest.raises(BundleIncompatible, match=words) as caught:
        Bundle.load(tmp_path / "bundle")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("M", [1, 2])
def test_however_few_recent_behaviors_a_network_sees_its_graph_takes_them(M: int) -> None:
    config = config_of(DINConfig(), M=M)
    _, checks = exported(network_of(config), config)
    assert checks.max_ctr_difference <= EXPORT_TOLERANCE


def test_items_that_were_never_met_are_left_out(network: Network) -> None:
    popularity = POPULARITY.copy()
    popularity[[4, 9]] = 0
    contents, _ = export_network(
        network, config_of(), item_ids=NAMES, titles=NAMES, popularity=popularity
    )
    assert contents.manifest.n_items == ITEMS - 2
    assert "item-4" not in contents.catalog.item_ids
    assert len(contents.embeddings) == len(contents.catalog.item_ids) == ITEMS - 1
    # And the manifest says what came of beta.
    assert isinstance(contents.manifest.offline, EncodeOffline)
    assert contents.manifest.offline.scale == pytest.approx(10.0)
