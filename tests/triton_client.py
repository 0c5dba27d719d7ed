"""Asks a Triton server with tritonclient, in the server's environment: JSON from stdin, JSON to stdout.

stdin: {"protocol": "http" or "grpc", "address": "127.0.0.1:8000", "requests": [{"model": NAME, "inputs": {NAME: [TEXT, ...]}}]}
stdout: for each request {"outputs": {NAME: rows}} or {"error": MESSAGE}
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException


def ask(triton: Any, client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request, or the server's error."""
    inputs = []
    for name, texts in request["inputs"].items():
        array = np.array([text.encode() for text in texts], dtype=object).reshape(-1, 1)
        inputs.append(triton.InferInput(name, list(array.shape), "BYTES"))
        inputs[-1].set_data_from_numpy(array)
    try:
        result = client.infer(request["model"], inputs)
    except InferenceServerException as error:
        return {"error": str(error.message())}
    response = result.get_response(as_json=True) if triton.__name__.endswith("grpc") else result.get_response()
    outputs = {}
    for each in response["outputs"]:
        values = result.as_numpy(each["name"]).tolist()
        outputs[each["name"]] = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in values]
    return {"outputs": outputs}


def main() -> None:
    """Send the requests one after the other."""
    work = json.load(sys.stdin)
    triton = importlib.import_module(f"tritonclient.{work['protocol']}")
    with triton.InferenceServerClient(work["address"]) as client:
        assert client.is_server_ready()
        json.dump([ask(triton, client, each) for each in work["requests"]], sys.stdout)


if __name__ == "__main__":
    main()
