"""Load on a Triton server, from the server's environment (`make triton`): JSON from stdin, JSON to stdout. See triton_load.py.

stdin: {"address": {"http": HOST:PORT, "grpc": HOST:PORT}, "model": NAME, "items": [[TEXT, ...], ...], "concurrency": [N, ...],
"requests": N, "seconds": N}. A request holds one item. Each worker is a thread with a client of its own, which sends the next
item as soon as it has the answer to the one before.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import threading
import time
from importlib.metadata import version
from typing import Any

import numpy as np

PROTOCOLS = ("http", "grpc")
PACKAGES = ("nvidia-pytriton", "tritonclient", "onnxruntime", "tokenizers", "numpy")


def open_client(work: dict[str, Any], protocol: str) -> tuple[Any, Any]:
    """(tritonclient's module of the protocol, a client)."""
    triton = importlib.import_module(f"tritonclient.{protocol}")
    return triton, triton.InferenceServerClient(work["address"][protocol])


def ask(triton: Any, client: Any, model: str, item: list[str]) -> np.ndarray:
    """The score or the probabilities of one item."""
    inputs = []
    for name, text in zip(("text", "text_pair"), item, strict=False):
        inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[text.encode()]], dtype=object))
    result = client.infer(model, inputs)
    score = result.as_numpy("score")
    return (score if score is not None else result.as_numpy("probabilities"))[0]


def batches(client: Any, protocol: str, model: str) -> tuple[int, int]:
    """(rows, executions) of the model since the server's start."""
    statistics = client.get_inference_statistics(model, **({"as_json": True} if protocol == "grpc" else {}))
    [stats] = statistics["model_stats"]
    return int(stats.get("inference_count", 0)), int(stats.get("execution_count", 0))


def load(work: dict[str, Any], protocol: str, concurrency: int, expected: list[np.ndarray] | None) -> dict[str, Any]:
    """One cell: `concurrency` workers, until as many requests are answered or the time is over."""
    items, model = work["items"], work["model"]
    numbers, answers, lock = itertools.count(), {}, threading.Lock()
    times: list[float] = []
    errors: list[str] = []
    differences: list[float] = []
    ready, begin = threading.Barrier(concurrency + 1), threading.Event()
    deadline = [0.0]

    def worker() -> None:
        triton, client = open_client(work, protocol)
        with client:
            ask(triton, client, model, items[0])  # the connection is not timed
            ready.wait()
            begin.wait()
            while time.perf_counter() < deadline[0] and (number := next(numbers)) < work["requests"]:
                index = number % len(items)
                started = time.perf_counter()
                try:
                    answer = ask(triton, client, model, items[index])
                except Exception as error:  # one bad answer must not end the measurement, but must be told
                    with lock:
                        errors.append(str(error))
                    continue
                ended = time.perf_counter()
                with lock:
                    times.append(ended - started)
                    if expected is None:
                        answers[index] = answer
                    else:
                        differences.append(float(np.abs(answer - expected[index]).max()))

    _, watching = open_client(work, protocol)
    workers = [threading.Thread(target=worker) for _ in range(concurrency)]
    for each in workers:
        each.start()
    ready.wait()
    before = batches(watching, protocol, model)
    started = time.perf_counter()
    deadline[0] = started + work["seconds"]
    begin.set()
    for each in workers:
        each.join()
    seconds = time.perf_counter() - started
    rows, executions = (after - first for after, first in zip(batches(watching, protocol, model), before, strict=True))
    watching.close()
    p50, p90, p99 = np.percentile(times, [50, 90, 99]) * 1e3 if times else [float("nan")] * 3
    return {
        "protocol": protocol, "concurrency": concurrency, "requests": len(times), "errors": errors[:3],
        "error_count": len(errors), "seconds": seconds, "requests_per_second": len(times) / seconds,
        "latency_p50_ms": p50, "latency_p90_ms": p90, "latency_p99_ms": p99, "rows_per_batch": rows / max(1, executions),
        "compared": len(differences), "largest_difference": max(differences, default=0.0),
        **({"answers": [answers[index].tolist() for index in range(len(items))]} if expected is None else {}),
    }  # fmt: skip


def main() -> None:
    """Every item once, one after the other: the answers that all others are compared with. Then the cells."""
    work = json.load(sys.stdin)
    alone = load(work | {"requests": len(work["items"]), "seconds": 600}, "http", 1, None)
    expected = [np.array(answer) for answer in alone.pop("answers")]
    cells = []
    for concurrency in work["concurrency"]:
        for protocol in PROTOCOLS:
            cells.append(load(work, protocol, concurrency, expected))
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    sequential = [answer.tolist() for answer in expected]
    versions = {name: version(name) for name in PACKAGES}
    json.dump({"sequential": sequential, "cells": cells, "versions": versions}, sys.stdout)


if __name__ == "__main__":
    main()
