"""Every call of kserve's client for V2 over REST; prints what came of each, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

MODEL = "tiny"
ITEMS = [f"item-{i}" for i in range(1, 41)]


def asked(*, binary: bool) -> InferRequest:
    inputs = []
    for name, values in {"user": ["u"], "candidates": ITEMS}.items():
        given = InferInput(name, [len(values)], "BYTES")
        given.set_data_from_numpy(np.array(values, np.object_), binary_data=binary)
        inputs.append(given)
    parameters = {"binary_data_output": True} if binary else None
    return InferRequest(MODEL, inputs, request_id="42", parameters=parameters)


async def main(port: str) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}"
    facts: dict[str, Any] = {"ctrs": {}}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        facts["live"] = await client.is_server_live(url)
        facts["ready"] = await client.is_server_ready(url)
        facts["model_ready"] = await client.is_model_ready(url, MODEL)
        for form in ("json", "binary"):
            answer = await client.infer(url, asked(binary=form == "binary"), model_name=MODEL)
            facts["ctrs"][form] = answer.outputs[0].as_numpy().tolist()
            facts["id"] = answer.id
        try:
            await client.infer(url, asked(binary=False), model_name="other")
        except httpx.HTTPStatusError as error:
            facts["failure"] = str(error)
    return facts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))) + "\n")
