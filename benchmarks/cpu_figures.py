"""The CPU's figures in one run: engines against FP32 on a grid, length buckets against fixed length, and start-up.

    python build_engine.py --int8 --checkpoint RUN
    python benchmarks/cpu_figures.py RUN --name cpu-minilm-full

RUN is a finished run with engines. They are run by ONNX Runtime on the CPU, interleaved, by `benchmark.py` with the options that
`benchmark` of the result records: latency at `--batch_sizes` x `--seq_lengths`, score and throughput on the development set.
Start-up is the wall time of a whole process, the median of `--starts`, taken in turn with a bare interpreter's. ONNX Runtime
takes a thread for each core: take them on an idle machine. Writes NAME.json, NAME.md and NAME.html into `--output_dir`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.cli.main import run_command
from q8trt.engine.manifest import MANIFEST_FILE
from q8trt.hardware.provenance import provenance
from q8trt.runs.run import open_run

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
    parser.add_argument("--batch_sizes", default="1,8,16")
    parser.add_argument("--seq_lengths", default="32,128")
    parser.add_argument("--iterations", default="30")
    parser.add_argument("--max_seconds", default="40", help="a shape, and the development set with buckets and without")
    parser.add_argument("--max_eval_samples", help="development rows (default: all)")
    parser.add_argument("--starts", type=int, default=7)
    options = parser.parse_args()
    run = open_run(options.run)
    engines = sorted(path.parent for path in run.path.glob(f"engine*/{MANIFEST_FILE}"))
    if len(engines) < 2:
        parser.error(f"{run.path} has not two engines; python build_engine.py --int8 --checkpoint {run.path}")
    started = time.perf_counter()
    result: dict[str, Any] = {"startup": start_seconds(options.starts)}
    argv = [argument for path in engines for argument in ("--engine", str(path))]
    argv += ["--backend", "onnxruntime", "--batch_sizes", options.batch_sizes, "--seq_lengths", options.seq_lengths]
    argv += ["--iterations", options.iterations, "--max_seconds", options.max_seconds]
    if options.max_eval_samples:
        data = run.record.config["data"]
        argv += ["--task", data["task"], "--max_eval_samples", options.max_eval_samples]
        argv += ["--data_dir", data["data_dir"]] if data["data_dir"] else []
    with tempfile.TemporaryDirectory() as folder:
        code = run_command("benchmark", [*argv, "--output_dir", folder, "--name", options.name])
        if code:
            return code
        report = files.read_json(Path(folder) / f"{options.name}.json")
        for ending in (".md", ".html"):
            files.write_text(
                options.output_dir / f"{options.name}{ending}",
                (Path(folder) / f"{options.name}{ending}").read_text("utf-8"),
            )
    result |= {"rows": summary(report), "benchmark": report, "took_seconds": round(time.perf_counter() - started, 1)}
    path = options.output_dir / f"{options.name}.json"
    files.write_json(path, {**result, "provenance": provenance(sys.argv)})
    print(f"start-up: {result['startup']}\nfigures: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
