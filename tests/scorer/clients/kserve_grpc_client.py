"""Every call of kserve's client for V2 over gRPC; prints what came of each, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

MODEL = "tiny"
ITEMS = [f"item-{i}" for i in range(1, 41)]


def asked(*, raw: bool) -> InferRequest:
    inputs = []
    for name, values in {"user": ["u"], "candidates": ITEMS}.items():
        given = InferInput(name, [len(values)], "BYTES")
        given.set_data_from_numpy(np.array(values, np.object_), binary_data=raw)
        inputs.append(given)
    return InferRequest(MODEL, inputs, request_id="42")


async def main(port: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"ctrs": {}}
    async with InferenceGRPCClient(f"127.0.0.1:{port}") as client:
        facts["live"] = await client.is_server_live()
        facts["ready"] = await client.is_server_ready()
        facts["model_ready"] = await client.is_model_ready(MODEL)
        for form in ("typed", "raw"):
            answer = await client.infer(asked(raw=form == "raw"))
            facts["ctrs"][form] = answer.outputs[0].as_numpy().tolist()
            facts["id"] = answer.id
        try:
            await client.is_model_ready("other")
        except grpc.RpcError as error:
            facts["failure"] = str(error)
    return facts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[2]))) + "\n")
