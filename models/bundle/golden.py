"""Golden requests and sequences: what a bundle must answer, wherever it runs.

A request is what a scorer graph is fed, so that any method has some. A sequence goes the whole way,
from a user's behaviors to CTRs, and holds whoever serves the bundle to what the network gave
(`extractor.systems.golden`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from infra.arrays import F32, Array
from infra.errors import BundleIncompatible, one_line

if TYPE_CHECKING:
    import onnxruntime

from models.bundle.graphs import check_graph
from models.bundle.manifest import GOLDEN

GOLDEN_TOLERANCE: Final = 1e-4
"""Largest difference from a golden CTR: wide enough for another processor's arithmetic, far too
narrow for a wrong model."""


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """An array in a msgpack file."""

    shape: tuple[int, ...]
    data: bytes
    """Little-endian, row by row."""
    dtype: Literal["<f4", "<i8"] = "<f4"

    @classmethod
    def of(cls, array: Array) -> Tensor:
        dtype: Literal["<f4", "<i8"] = "<i8" if array.dtype.kind == "i" else "<f4"
        return cls(array.shape, np.ascontiguousarray(array, dtype).tobytes(), dtype)

    def array(self) -> Array:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


class GoldenRequest(msgspec.Struct, frozen=True):
    """A request, as the scorer's inputs, and the CTRs that the trained network gave."""

    name: str
    inputs: dict[str, Tensor]
    ctr: Tensor

    def feed(self) -> dict[str, Array]:
        """The request as inputs of scorer.onnx."""
        return {name: tensor.array() for name, tensor in self.inputs.items()}


class GoldenSequence(msgspec.Struct, frozen=True):
    """A user's behaviors and candidates, and the CTRs that the trained network gave."""

    name: str
    items: list[str]
    """Ids of the behaviors' items, oldest first."""
    times: list[int]
    """Their event times, ms since epoch."""
    newer: int
    """How many of them, the last ones, are newer than the user's state."""
    count: int
    """Behaviors of the user ever applied, of which these are the last."""
    candidates: list[str]
    """B item ids."""
    now_ms: int
    """The moment for which to score, ms since epoch."""
    ctr: Tensor
    """f32[B]."""
    actions: list[int] = []
    """The behaviors' actions as rows of the bundle's, 0 for unknown; none: all are unknown."""
    dwells: list[int] = []
    """Their dwell times, ms; none: nothing is known of any."""


def make_session(model: bytes) -> onnxruntime.InferenceSession:
    """A session of onnxruntime on one core, which does not spin while it waits.

    A service runs a process per core; spinning threads would steal the neighbor's.

    Raises:
        GraphRefused: the graph is more than data (`check_graph`). onnxruntime raises its own errors
            of what it cannot run.
    """
    check_graph(model)
    # Once loaded, onnxruntime tells its maker of each session, and leaves a file in the temporary
    # directory. Its own function to disable that comes too late: the first message is under way
    # by then. So this is the one place that loads it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what was looked at
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class GoldenChecks:
    """How a bundle does on its golden requests, or on its golden sequences."""

    requests: int
    """How many were repeated."""
    max_difference: float
    """Largest difference from their CTRs."""

    @classmethod
    def of(cls, differences: Mapping[str, float], what: object, file: str) -> GoldenChecks:
        """The checks, by the largest difference of ``what`` from the CTRs of each in ``file``.

        Raises:
            BundleIncompatible: one is larger than GOLDEN_TOLERANCE.
        """
        for name, difference in differences.items():
            if not difference <= GOLDEN_TOLERANCE:  # not a number is no agreement
                raise BundleIncompatible(
                    f"{what} differs by {difference:.2g} from {file} ({name}); "
                    "export the bundle again"
                )
        return cls(len(differences), max(differences.values(), default=0.0))


def check_golden(
    file: Path,
    session: onnxruntime.InferenceSession,
    golden: Sequence[GoldenRequest],
    rate: float = 1.0,
) -> GoldenChecks:
    """Repeat golden requests on a session of the scorer.onnx at ``file``.

    Args:
        rate: the bundle's (`models.bundle.Manifest.corrected_for`).

    Raises:
        BundleIncompatible: a request cannot be run, or a CTR differs by more than GOLDEN_TOLERANCE.
    """
    try:
        differences = golden_differences(session, golden, rate)
    except Exception as error:  # onnxruntime raises its own and plain exceptions alike
        raise cannot_be_run(file, error) from error
    return GoldenChecks.of(differences, file, GOLDEN)


def golden_differences(
    session: onnxruntime.InferenceSession, golden: Sequence[GoldenRequest], rate: float = 1.0
) -> dict[str, float]:
    """The largest `ctr_difference` of a scorer.onnx from each golden request, by its name."""
    # A method that reads nothing of an input leaves it out of its graph.
    inputs = {node.name for node in session.get_inputs()}
    differences = {}
    for request in golden:
        feed = {name: values for name, values in request.feed().items() if name in inputs}
        (ctrs,) = session.run(None, feed)
        differences[request.name] = ctr_difference(ctrs, request.ctr, rate)
    return differences


def ctr_difference(ctrs: F32, expected: Tensor, rate: float = 1.0) -> float:
    """The largest difference from expected CTRs: infinite where their number is another one, and
    not a number where a CTR is none.

    CTRs are compared as they were learned, before the correction for the sampling rate: it makes
    them, and what is wrong with them, many times smaller.
    """
    if ctrs.shape != expected.shape:
        return float("inf")
    difference = as_learned(ctrs, rate) - as_learned(expected.array(), rate)
    return float(np.abs(difference).max(initial=0.0))


def as_learned(ctrs: Array, rate: float) -> Array:
    """CTRs before they were corrected for a sampling rate (`models.network.Network.ctrs`)."""
    return ctrs / (ctrs + (1 - ctrs) * rate)


def cannot_be_run(file: Path, error: Exception) -> BundleIncompatible:
    """The error that tells of a graph that onnxruntime does not run."""
    return BundleIncompatible(f"{file} cannot be run: {one_line(error)}; export the bundle again")
