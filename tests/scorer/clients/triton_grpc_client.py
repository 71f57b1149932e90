"""Every call of tritonclient[grpc] that a scorer answers; prints what came of each, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

MODEL = "tiny"
ITEMS = [f"item-{i}" for i in range(1, 41)]


def tensor(name: str, values: Any) -> triton.InferInput:
    array = np.array(values)
    if array.dtype.kind in "UO":
        array = array.astype(np.object_)
    datatype = {"O": "BYTES", "u": "UINT64", "i": "INT64"}[array.dtype.kind]
    return triton.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def inputs() -> list[triton.InferInput]:
    return [tensor("user", ["u"]), tensor("candidates", ITEMS)]


def failure(call: Callable[[], object]) -> str:
    try:
        call()
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    return "it did not fail"


def wire() -> dict[str, list[tuple[str, int, int, bool]]]:
    """The fields of each message as the client knows them: name, number, type, repeated."""
    told: dict[str, list[tuple[str, int, int, bool]]] = {}

    def tell(message: Descriptor) -> None:
        told[message.full_name] = [
            (field.name, field.number, field.type, field.is_repeated) for field in message.fields
        ]
        for nested in message.nested_types:
            tell(nested)

    for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            tell(message)
    return told


def main(port: str) -> dict[str, Any]:
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    version = client.get_model_metadata(MODEL, as_json=True)["versions"][0]

    def ctrs(given: list[triton.InferInput], **how: Any) -> list[float]:
        values: list[float] = client.infer(MODEL, given, **how).as_numpy("ctr").tolist()
        return values

    facts: dict[str, Any] = {
        "wire": wire(),
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "version_ready": client.is_model_ready(MODEL, version),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(MODEL, version, as_json=True),
        "config": client.get_model_config(MODEL, version, as_json=True)["config"],
        "index": client.get_model_repository_index(as_json=True)["models"],
        "version": version,
    }
    came: Queue[Any] = Queue()
    client.async_infer(MODEL, inputs(), lambda result, error: came.put(error or result))
    facts["ctrs"] = {
        "plain": ctrs(inputs()),
        "version": ctrs(inputs(), model_version=version),
        "gzip": ctrs(inputs(), compression_algorithm="gzip"),
        "deflate": ctrs(inputs(), compression_algorithm="deflate"),
        "parameters": ctrs(inputs(), timeout=1_000_000, priority=1, parameters={"mine": "x"}),
        "async": came.get(timeout=30).as_numpy("ctr").tolist(),
    }
    answer = client.infer(MODEL, inputs(), request_id="42")
    facts["answer"] = answer.get_response(as_json=True)
    facts["unknown"] = answer.as_numpy("unknown").tolist()
    facts["several"] = ctrs([tensor("user", ["u", "who"]), tensor("candidates", [ITEMS, ITEMS])])
    facts["failures"] = {
        "ready": failure(lambda: client.is_model_ready(MODEL, "other")),
        "model": failure(lambda: client.infer("other", inputs())),
        "version": failure(lambda: client.get_model_metadata(MODEL, "other")),
        "input": failure(lambda: client.infer(MODEL, inputs()[:1])),
        "time": failure(lambda: client.infer(MODEL, inputs(), client_timeout=1e-6)),
        "load": failure(lambda: client.load_model(MODEL)),
    }
    facts["stats"] = client.get_inference_statistics(MODEL, version, as_json=True)
    client.close()
    return facts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[2])) + "\n")
