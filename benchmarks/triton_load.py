"""Strings in, scores out: a Triton server on this machine's CPU under load, over HTTP and gRPC. Every answer is compared.

    make triton
    python benchmarks/triton_load.py ENGINE_DIR --data_dir GLUE --name triton-load-minilm-full

The server is nvidia-pytriton's, with the Python backend and ONNX Runtime in it: these are not TensorRT's times. Client and
server share the machine's cores. First each item is asked alone; those answers must be `q8trt.Engine`'s, and under load every
answer must be the one that it got alone. Not longer than 4 minutes: each cell ends after --requests or --seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from q8trt import Engine, files
from q8trt.deployment.triton import TritonConfig, write_repository
from q8trt.hardware.provenance import provenance
from q8trt.tasks.data import DataConfig, Examples, load_dev

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from triton_local_server import ENVIRONMENT, find_installation, serve

RESULTS = Path(__file__).parent / "results"
LABEL = "ONNX Runtime on the CPU behind Triton (Python backend)"
#: Kernels of another batch size may round the last bits otherwise.
TOLERANCE = 1e-4


def items_of(args: argparse.Namespace, engine: Engine) -> list[list[str]]:
    """Texts of the task's development set, or built-in sentences."""
    task = engine.manifest.task
    config = DataConfig(task.name, data_dir=args.data_dir) if args.data_dir else DataConfig("STS-B", sample=True)
    examples = next(iter(load_dev(config).values())).take(args.items)
    assert isinstance(examples, Examples)
    columns = [examples.first, examples.second or []] if task.is_pair else [examples.first]
    return [list(row) for row in zip(*columns, strict=True)]


def answers_of(engine: Engine, items: list[list[str]]) -> np.ndarray:
    """(items, 1) scores, or (items, labels) probabilities."""
    rows = [tuple(item) if len(item) > 1 else item[0] for item in items]
    answers: list[Any] = engine.predict(rows)
    return np.array([[each] if isinstance(each, float) else list(each.probabilities.values()) for each in answers])


def in_process(engine: Engine, items: list[list[str]]) -> dict[str, float]:
    """Latency of the same items by `q8trt.Engine`, one after the other, without a server."""
    answers_of(engine, items[:8])
    times = []
    for item in items:
        started = time.perf_counter()
        answers_of(engine, [item])
        times.append(time.perf_counter() - started)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {
        "items": len(items),
        "latency_p50_ms": p50,
        "latency_p99_ms": p99,
        "items_per_second": len(items) / sum(times),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    installation = find_installation(args.environment)
    config = TritonConfig(
        "python", model_name="texts", instances=args.instances, threads=args.threads,
        max_queue_delay_microseconds=args.max_queue_delay_microseconds,
    )  # fmt: skip
    with Engine.load(args.engine, device="cpu", threads=args.threads) as engine:
        items = items_of(args, engine)
        expected, alone, manifest = answers_of(engine, items), in_process(engine, items), engine.manifest
    with tempfile.TemporaryDirectory() as folder:
        written = write_repository(args.engine, Path(folder) / "models", config)
        work = {"model": "texts", "items": items, "concurrency": args.concurrency, "requests": args.requests,
                "seconds": args.seconds}  # fmt: skip
        with serve(written.path, installation.environment) as address:
            work["address"] = {"http": address.http, "grpc": address.grpc}
            command = [installation.environment / "bin" / "python", Path(__file__).with_name("triton_load_client.py")]
            done = subprocess.run(command, input=json.dumps(work), stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(done.stdout)
    differences = np.abs(np.array(measured["sequential"]) - expected)
    wrong = [cell for cell in measured["cells"] if cell["error_count"] or cell["largest_difference"] > TOLERANCE]
    return {
        "label": LABEL,
        "task": manifest.task.name, "model": manifest.model.name, "precision": manifest.precision,
        "texts": f"{len(items)} items, " + (f"{manifest.task.name} development set" if args.data_dir else "built-in sample"),
        "serving": asdict(config),
        "in_process": {"label": "q8trt.Engine on ONNX Runtime, one item at a time, no server", **alone},
        "sequential_against_engine": {"items": len(items), "largest_difference": float(differences.max())},
        "cells": measured["cells"],
        "all_answers_equal": not wrong and bool(differences.max() <= TOLERANCE), "tolerance": TOLERANCE,
        "server_versions": measured["versions"],
        "provenance": provenance(sys.argv),
    }  # fmt: skip


def show(report: dict[str, Any]) -> None:
    """The cells as a table."""
    print(f"\n{report['label']}: {report['texts']}")
    print("protocol  concurrency  requests/s    p50 ms    p99 ms  rows a batch")
    for cell in report["cells"]:
        p50, p99, rows = cell["latency_p50_ms"], cell["latency_p99_ms"], cell["rows_per_batch"]
        rate = cell["requests_per_second"]
        print(f"{cell['protocol']:8} {cell['concurrency']:>12} {rate:>11.1f} {p50:>9.2f} {p99:>9.2f} {rows:>13.1f}")
    alone = report["in_process"]
    p50, p99 = alone["latency_p50_ms"], alone["latency_p99_ms"]
    print(f"no server {1:>11} {alone['items_per_second']:>11.1f} {p50:>9.2f} {p99:>9.2f}")
    print(f"all answers equal: {report['all_answers_equal']}")


def main() -> int:
    """Measure, write, print; returns 1 when an answer was wrong or missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", metavar="ENGINE_DIR")
    parser.add_argument("--data_dir", help="folder of GLUE TSV files (default: built-in sentences, which are not GLUE)")
    parser.add_argument("--environment", default=ENVIRONMENT)
    parser.add_argument("--name", help="file name under benchmarks/results/ (default: print only)")
    parser.add_argument("--items", type=int, default=200, help="different texts or pairs")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4000, help="most requests of a cell")
    parser.add_argument("--seconds", type=float, default=25, help="most seconds of a cell")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max_queue_delay_microseconds", type=int, default=100)
    args = parser.parse_args()
    report = measure(args)
    show(report)
    if args.name:
        files.write_json(RESULTS / f"{args.name}.json", report)
    return 0 if report["all_answers_equal"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
