"""Golden requests: what a scorer graph must answer, wherever it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from infra.arrays import F64, Array
from infra.errors import BundleIncompatible, one_line

if TYPE_CHECKING:
    import onnxruntime

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


def make_session(model: bytes) -> onnxruntime.InferenceSession:
    """A session of onnxruntime on one core, which does not spin while it waits.

    A service runs a process per core; spinning threads would steal the neighbor's.
    """
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
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class GoldenChecks:
    """How a scorer.onnx does on the golden requests of its bundle."""

    requests: int
    """Golden requests repeated."""
    max_difference: float
    """Largest difference from their CTRs."""


def check_golden(
    file: Path, session: onnxruntime.InferenceSession, golden: Sequence[GoldenRequest]
) -> GoldenChecks:
    """Repeat golden requests on a session of the scorer.onnx at ``file``.

    Raises:
        BundleIncompatible: a request cannot be run, or a CTR differs by more than GOLDEN_TOLERANCE.
    """
    try:
        differences = golden_differences(session, golden)
    except Exception as error:  # onnxruntime raises its own and plain exceptions alike
        raise cannot_be_run(file, error) from error
    for request, difference in zip(golden, differences, strict=True):
        if not difference <= GOLDEN_TOLERANCE:  # not a number is no agreement
            raise BundleIncompatible(
                f"{file} differs by {difference:.2g} from {GOLDEN} ({request.name}); "
                "export the bundle again"
            )
    return GoldenChecks(len(golden), float(differences.max(initial=0.0)))


def golden_differences(
    session: onnxruntime.InferenceSession, golden: Sequence[GoldenRequest]
) -> F64:
    """Differences of a scorer.onnx from the CTRs of golden requests.

    Returns:
        f64[G]: the largest difference from each request's CTRs; infinite where their number is
        another one, and not a number where a CTR is none.
    """
    # A method that reads nothing of an input leaves it out of its graph.
    inputs = {node.name for node in session.get_inputs()}
    differences = np.full(len(golden), np.inf)
    for at, request in enumerate(golden):
        feed = {name: values for name, values in request.feed().items() if name in inputs}
        (ctrs,) = session.run(None, feed)
        expected = request.ctr.array()
        if ctrs.shape == expected.shape:
            differences[at] = np.abs(ctrs - expected).max(initial=0.0)
    return differences


def cannot_be_run(file: Path, error: Exception) -> BundleIncompatible:
    """The error that tells of a graph that onnxruntime does not run."""
    return BundleIncompatible(f"{file} cannot be run: {one_line(error)}; export the bundle again")
