"""Export of a trained network into a bundle: two ONNX graphs, tables, and golden requests.

Each graph is compared with the torch network on random and on degenerate inputs before anything
is written; a bundle that exists therefore agreed with its network.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from infra.errors import TrainingError
from models.bundle import (
    SCORER_INPUTS,
    BundleContents,
    GoldenRequest,
    Manifest,
    Tensor,
    Vocabulary,
    make_session,
    save_bundle,
)
from models.encode import Encode, Projection, Scorer
from models.training import load_run

OPSET: Final = 18
"""ONNX operator set of the graphs; onnxruntime has read it since 1.14."""

EXPORT_TOLERANCE: Final = 1e-5
"""Largest difference between a graph and the network that it was exported from."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ExportChecks:
    """How far the exported graphs are from the torch network."""

    requests: int
    """Scorer requests compared, degenerate ones among them."""
    max_ctr_difference: float
    max_projection_difference: float


def export(run_dir: Path, out: Path) -> ExportChecks:
    """Export a finished training run into a bundle; one that is at ``out`` is replaced.

    Raises:
        TrainingError: there is no readable run, or a graph disagrees with the network.
    """
    run = load_run(run_dir)
    contents, checks = export_network(
        run.network,
        name=run.config.name,
        item_ids=run.vocabulary.item_ids,
        titles=run.vocabulary.titles,
        popularity=np.array(run.vocabulary.popularity, np.float32),
        seed=run.config.seed,
        training={**asdict(run.config), "epochs_best": run.epochs},
        data=run.data,
        metrics=run.metrics,
    )
    save_bundle(contents, out)
    return checks


def export_network(
    network: Encode,
    *,
    name: str,
    item_ids: Sequence[str],
    titles: Sequence[str],
    popularity: Floats,
    seed: int = 0,
    training: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> tuple[BundleContents, ExportChecks]:
    """The contents of a network's bundle, and how well its graphs agree with it.

    Args:
        item_ids, titles: n + 1 entries, row 0 ("") for unknown items.
        popularity: f32[n + 1], behaviors per million.

    Raises:
        TrainingError: a graph differs from the network by more than EXPORT_TOLERANCE.
    """
    network = network.eval()
    config = network.config
    embeddings = network.embedding.weight.detach().numpy().astype(np.float32)
    projection_model = export_projection(network)
    scorer_model = export_scorer(network)
    golden = golden_requests(network, seed)
    checks = ExportChecks(
        requests=len(golden),
        max_ctr_difference=_compare_scorer(scorer_model, golden),
        max_projection_difference=_compare_projection(projection_model, network, embeddings),
    )
    # np.max, unlike max, does not lose a NaN on the way.
    worst = float(np.max([checks.max_ctr_difference, checks.max_projection_difference]))
    if not worst <= EXPORT_TOLERANCE:
        raise TrainingError(
            f"the exported graphs differ from the network by {worst:.2g} "
            f"(at most {EXPORT_TOLERANCE:g}); the network may have diverged, train again"
        )
    manifest = Manifest(
        name=name,
        n_items=config.n_items,
        d=config.d,
        m=config.m,
        K=config.K,
        L=config.L,
        M=config.M,
        u=network.tower.user.in_features,
        c=network.tower.pair.in_features - 5 * config.d,
        T=config.T,
        beta=config.beta,
        beta_mode=config.beta_mode,
        scale=float(network.scale.detach()),
        seed=seed,
        training=dict(training or {}),
        data=dict(data or {}),
        metrics=dict(metrics or {}),
    )
    vocabulary = Vocabulary(list(item_ids), list(titles), [float(p) for p in popularity])
    contents = BundleContents(
        manifest, vocabulary, embeddings, projection_model, scorer_model, golden
    )
    return contents, checks


def export_projection(network: Encode) -> bytes:
    """projection.onnx: embeddings[n, d] -> projected[n, m]."""
    rows = torch.export.Dim("n")
    return _export(
        Projection(network),
        {"embeddings": torch.zeros(3, network.config.d)},
        {"embeddings": {0: rows}},
        "projected",
    )


def export_scorer(network: Encode) -> bytes:
    """scorer.onnx: `models.bundle.SCORER_INPUTS` -> ctr[B]."""
    config = network.config
    K, M, B = 5, min(3, config.M), 7  # any sizes: the axes are dynamic
    clusters = torch.export.Dim("interests", min=1)
    recent = torch.export.Dim("recent", min=1, max=config.M)
    candidates = torch.export.Dim("candidates")
    example = _inputs(network, np.random.default_rng(0), K, M, B)
    return _export(
        Scorer(network),
        {name: torch.from_numpy(example[name]) for name in SCORER_INPUTS},
        {
            "interests": {0: clusters},
            "interest_mask": {0: clusters},
            "recent": {0: recent},
            "recent_mask": {0: recent},
            "user": None,
            "candidates": {0: candidates},
            "cross": {0: candidates},
        },
        "ctr",
    )


def golden_requests(network: Encode, seed: int) -> list[GoldenRequest]:
    """Random and degenerate requests with the network's own CTRs."""
    config = network.config
    rng = np.random.default_rng(seed)
    M = config.M
    full = _inputs(network, rng, config.K, M, 20)
    nothing = _inputs(network, rng, 1, 1, 3)
    nothing |= {"interest_mask": np.zeros(1, np.float32), "recent_mask": np.zeros(1, np.float32)}
    nothing["user"] = np.zeros_like(nothing["user"])
    padded = _inputs(network, rng, config.K + 4, M, 6)
    padded["interest_mask"][2:] = 0
    padded["recent_mask"][: max(M - 2, 1)] = 0
    alike = _inputs(network, rng, 3, min(3, M), 5)
    alike["interests"][:] = alike["interests"][0]
    alike["recent"][:] = alike["interests"][0][: config.d]
    alike["candidates"][:] = alike["interests"][0]
    zero = {name: np.zeros_like(values) for name, values in _inputs(network, rng, 2, 1, 2).items()}
    cases = {
        "full": full,
        "no behavior": nothing,
        "one behavior": _inputs(network, rng, 1, 1, 4),
        "one candidate": _inputs(network, rng, config.K, M, 1),
        "padded": padded,
        "all alike": alike,
        "all zero": zero,
    }
    scorer = Scorer(network)
    requests = []
    for name, inputs in cases.items():
        with torch.no_grad():
            ctr = scorer(*(torch.from_numpy(inputs[key]) for key in SCORER_INPUTS)).numpy()
        tensors = {key: Tensor.of(values) for key, values in inputs.items()}
        requests.append(GoldenRequest(name, tensors, Tensor.of(ctr)))
    return requests


def _inputs(network: Encode, rng: np.random.Generator, K: int, M: int, B: int) -> dict[str, Floats]:
    """A random request; embeddings are rows of the network's own table."""
    table = network.embedding.weight.detach().numpy()
    config = network.config
    u = network.tower.user.in_features
    c = network.tower.pair.in_features - 5 * config.d
    inputs = {
        "interests": table[rng.integers(0, len(table), K)],
        "interest_mask": np.ones(K),
        "recent": table[rng.integers(0, len(table), M)],
        "recent_mask": np.ones(M),
        "user": rng.random(u),
        "candidates": table[rng.integers(0, len(table), B)],
        "cross": rng.random((B, c)),
    }
    return {name: values.astype(np.float32) for name, values in inputs.items()}


def _export(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    dynamic: dict[str, Any],
    output: str,
) -> bytes:
    with _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    # Names of source files and stack traces would make the bytes depend on where this ran.
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of every package that it could support and that is not installed, of
    axes that share a name (as ours are meant to), and of its own dependencies' deprecations.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _compare_scorer(model: bytes, golden: Sequence[GoldenRequest]) -> float:
    session = make_session(model)
    differences = [
        np.abs(session.run(None, request.feed())[0] - request.ctr.array()).max()
        for request in golden
    ]
    return float(np.max(differences))


def _compare_projection(model: bytes, network: Encode, embeddings: Floats) -> float:
    (projected,) = make_session(model).run(None, {"embeddings": embeddings})
    with torch.no_grad():
        expected = network.project(torch.from_numpy(embeddings)).numpy()
    return float(np.abs(projected - expected).max())
