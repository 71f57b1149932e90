"""Every call of tritonclient[http] that a scorer answers; prints what came of each, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL = "tiny"
ITEMS = [f"item-{i}" for i in range(1, 41)]


def tensor(name: str, values: Any, *, binary: bool) -> triton.InferInput:
    array = np.array(values)
    if array.dtype.kind in "UO":
        array = array.astype(np.object_)
    datatype = {"O": "BYTES", "u": "UINT64", "i": "INT64"}[array.dtype.kind]
    given = triton.InferInput(name, list(array.shape), datatype)
    return given.set_data_from_numpy(array, binary_data=binary)


def inputs(*, binary: bool) -> list[triton.InferInput]:
    return [tensor("user", ["u"], binary=binary), tensor("candidates", ITEMS, binary=binary)]


def failure(call: Callable[[], object]) -> str:
    try:
        call()
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    return "it did not fail"


def main(port: str) -> dict[str, Any]:
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    version = client.get_model_metadata(MODEL)["versions"][0]

    def ctrs(given: list[triton.InferInput], **how: Any) -> list[float]:
        values: list[float] = client.infer(MODEL, given, **how).as_numpy("ctr").tolist()
        return values

    facts: dict[str, Any] = {
        "stats_before": client.get_inference_statistics(MODEL),
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "version_ready": client.is_model_ready(MODEL, version),
        "other_ready": client.is_model_ready(MODEL, "other"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(MODEL, version),
        "config": client.get_model_config(MODEL, version),
        "index": client.get_model_repository_index(),
        "version": version,
    }
    json_output = [triton.InferRequestedOutput("ctr", binary_data=False)]
    facts["ctrs"] = {
        "json": ctrs(inputs(binary=False), outputs=json_output),
        "binary": ctrs(inputs(binary=True)),
        "version": ctrs(inputs(binary=True), model_version=version),
        "gzip": ctrs(
            inputs(binary=True),
            request_compression_algorithm="gzip",
            response_compression_algorithm="gzip",
        ),
        "deflate": ctrs(
            inputs(binary=False),
            outputs=json_output,
            request_compression_algorithm="deflate",
            response_compression_algorithm="deflate",
        ),
        "async": client.async_infer(MODEL, inputs(binary=True))
        .get_result()
        .as_numpy("ctr")
        .tolist(),
    }
    answer = client.infer(MODEL, inputs(binary=True), request_id="42")
    facts["answer"] = answer.get_response()
    facts["unknown"] = answer.as_numpy("unknown").tolist()
    several = [
        tensor("user", ["u", "who"], binary=True),
        tensor("candidates", [ITEMS, ITEMS], binary=True),
    ]
    facts["several"] = ctrs(several)
    facts["failures"] = {
        "model": failure(lambda: client.infer("other", inputs(binary=True))),
        "version": failure(lambda: client.get_model_metadata(MODEL, "other")),
        "input": failure(lambda: client.infer(MODEL, inputs(binary=True)[:1])),
    }
    facts["stats"] = client.get_inference_statistics(MODEL, version)
    facts["stats_of_all"] = client.get_inference_statistics()
    client.close()
    return facts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
