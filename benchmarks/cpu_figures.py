"""The CPU's figures in one run: engines against FP32 on a grid, length buckets against fixed length, and start-up.

    python build_engine.py --int8 --checkpoint RUN
    python benchmarks/cpu_figures.py RUN --name cpu-minilm-full

RUN is a finished run with engines. ONNX Runtime runs them on the CPU, interleaved, with the options that `benchmark` of the
result records: latency at `--batch_sizes` x `--seq_lengths`, score and throughput on the development set.
Start-up is the wall time of a whole process, the median of `--starts`, taken in turn with a bare interpreter's. ONNX Runtime
takes a thread for each core: take them on an idle machine. Writes NAME.json, NAME.md and NAME.html into `--output_dir`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import q8trt
from q8trt import files
from q8trt.engine.manifest import MANIFEST_FILE
from q8trt.hardware.provenance import provenance
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import open_run
from q8trt.runtime.timing.config import grid, parse_sizes

ROOT = Path(__file__).parents[1]
#: What is started -> arguments of the interpreter.
STARTS = {
    "python": ["-c", ""],
    "import_q8trt": ["-c", "import q8trt"],
    "benchmark_help": ["benchmark.py", "--help"],
}


def start_seconds(times: int) -> dict[str, float]:
    """Median wall seconds of each of `STARTS`, taken in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(1 + times):
        for name, arguments in STARTS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - started)
    return {f"{name}_s": round(statistics.median(each[1:]), 3) for name, each in seconds.items()}


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Of each row: how many times as fast as FP32 at each shape, what buckets are worth, and the score."""
    rows = {}
    for row in report["rows"]:
        against = row["against"] or {"median_latency_ratio": {}}
        lengths = row["lengths"] or {}
        rows[row["name"]] = {
            "label": row["label"],
            "speed_over_fp32_ratio": {
                shape: round(1 / ratio, 3) for shape, ratio in against["median_latency_ratio"].items() if ratio
            },
            "buckets_over_fixed_samples_ratio": round(lengths["ratio"], 3) if lengths else None,
            "rows_of_buckets": lengths.get("rows"),
            "score_x100": row["score_x100"],
        }
    return rows


def main() -> int:
    """Take the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="a finished run with engines")
    parser.add_argument("--name", default="cpu-figures", help="stem of the files")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--batch_sizes", type=partial(parse_sizes, "--batch_sizes"), default="1,8,16")
    parser.add_argument("--seq_lengths", type=partial(parse_sizes, "--seq_lengths"), default="32,128")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument(
        "--max_seconds", type=float, default=40.0, help="a shape, and the development set with buckets and without"
    )
    parser.add_argument("--max_eval_samples", type=int, help="development rows (default: all)")
    parser.add_argument("--starts", type=int, default=7)
    options = parser.parse_args()
    run = open_run(options.run)
    engines = sorted(path.parent for path in run.path.glob(f"engine*/{MANIFEST_FILE}"))
    if len(engines) < 2:
        parser.error(f"{run.path} has not two engines; python build_engine.py --int8 --checkpoint {run.path}")
    started = time.perf_counter()
    result: dict[str, Any] = {"startup": start_seconds(options.starts)}
    data = FinetuneConfig.from_dict(run.record.config).data
    if options.max_eval_samples:
        data = replace(data, max_eval_samples=options.max_eval_samples)
    measured = q8trt.benchmark(
        *engines, data=data, backend="onnxruntime", shapes=grid(options.batch_sizes, options.seq_lengths),
        iterations=options.iterations, max_seconds=options.max_seconds, output_dir=options.output_dir, name=options.name,
        progress=True,
    )  # fmt: skip
    report = measured.to_dict()
    result |= {"rows": summary(report), "benchmark": report, "took_seconds": round(time.perf_counter() - started, 1)}
    path = options.output_dir / f"{options.name}.json"
    files.write_json(path, {**result, "provenance": provenance(sys.argv)})
    print(f"start-up: {result['startup']}\nfigures: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
