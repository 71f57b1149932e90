"""What Triton's tools ask of a server besides inference, where REST and gRPC say the same.

Each is a message of Triton's protocol as JSON names its fields, which is how a gRPC message is made
from it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from infra.metrics import Figures
from models.bundle import Bundle
from scorer.inference import INPUTS, OUTPUTS, metadata

EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "parameters", "statistics")
"""Of Triton's extensions, those that are here in full; of its model repository the index is."""

CONFIG_TYPES: Final = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}
"""Datatypes as a model's configuration names them, where it is not TYPE_ before the name."""


@cache
def own_version() -> str:
    """The version of Lifelong as installed. Looking it up takes half a millisecond."""
    try:
        return version("lifelong")
    except PackageNotFoundError:
        return "unknown"


def server_metadata() -> dict[str, object]:
    """What the server says of itself."""
    return {"name": "lifelong", "version": own_version(), "extensions": list(EXTENSIONS)}


def model_config(bundle: Bundle) -> dict[str, object]:
    """A model's configuration. Requests are not batched for it: shapes are whole."""
    about = metadata(bundle.manifest, bundle.version)
    shapes: dict[str, Any] = {
        tensor["name"]: tensor["shape"]
        for kind in ("inputs", "outputs")
        for tensor in about[kind]  # type: ignore[attr-defined]  # a list of dicts, as made there
    }
    return {
        "name": bundle.manifest.name,
        "platform": about["platform"],
        "backend": "lifelong",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [
            {
                "name": name,
                "data_type": _config_type(datatypes[0]),
                "dims": shapes[name],
                "optional": name == "time",
            }
            for name, datatypes in INPUTS.items()
        ],
        "output": [
            {"name": name, "data_type": _config_type(datatype), "dims": shapes[name]}
            for name, datatype in OUTPUTS.items()
        ],
        "parameters": {
            "bundle_version": {"string_value": bundle.version},
            "system": {"string_value": bundle.manifest.system},
        },
    }


def repository_index(
    bundle: Bundle, reason: str | None, *, ready: bool = False
) -> list[dict[str, str]]:
    """The models that there are: one.

    Args:
        reason: why the scorer is not ready; None: it is.
        ready: whether to leave out a model that is not.
    """
    if ready and reason is not None:
        return []
    state = "READY" if reason is None else "UNAVAILABLE"
    return [
        {
            "name": bundle.manifest.name,
            "version": bundle.version,
            "state": state,
            "reason": reason or "",
        }
    ]


def statistics(bundle: Bundle, figures: Figures) -> dict[str, object]:
    """Statistics of the model, over all of the scorer's processes and routes, since it started.

    A user with candidates is an inference, and one execution. Time that a request waits, and time
    to write an answer, are in "success" and not told apart; that of failed requests is there, too.
    """

    def duration(count: float, seconds: float) -> dict[str, int]:
        return {"count": int(count), "ns": round(seconds * 1e9)}

    stages = {
        name: duration(
            figures.sum("lifelong_scorer_stage_seconds_count", stage=name),
            figures.sum("lifelong_scorer_stage_seconds_sum", stage=name),
        )
        for name in ("store", "features", "model")
    }
    done, failed, seconds = 0.0, 0.0, 0.0
    for labels, value in figures.of("lifelong_scorer_requests_total"):
        if _scores(labels):
            if labels["status"] == "200":
                done += value
            else:
                failed += value
    for labels, value in figures.of("lifelong_scorer_request_seconds_sum"):
        seconds += value if _scores(labels) else 0
    executed = stages["model"]["count"]
    none = duration(0, 0)
    return {
        "model_stats": [
            {
                "name": bundle.manifest.name,
                "version": bundle.version,
                "last_inference": round(
                    1000 * figures.most("lifelong_scorer_last_ranking_timestamp_seconds")
                ),
                "inference_count": executed,
                "execution_count": executed,
                "inference_stats": {
                    "success": duration(done, seconds),
                    "fail": duration(failed, 0),
                    "queue": none,
                    "compute_input": {
                        "count": stages["features"]["count"],
                        "ns": stages["store"]["ns"] + stages["features"]["ns"],
                    },
                    "compute_infer": stages["model"],
                    "compute_output": none,
                    "cache_hit": none,
                    "cache_miss": none,
                },
                "batch_stats": [],
            }
        ]
    }


def _scores(labels: Mapping[str, str]) -> bool:
    """Whether a route is one that scores."""
    return labels["route"].lower().endswith(("/rank", "infer"))


def _config_type(datatype: str) -> str:
    return CONFIG_TYPES.get(datatype, f"TYPE_{datatype}")
