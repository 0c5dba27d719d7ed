"""Measure an INT8 graph before it runs on a GPU: lint, sizes, build, logits, and latency on ONNX Runtime.

    python benchmarks/export_figures.py graph --run RUN --data_dir GLUE --name export-minilm-full
    python benchmarks/export_figures.py graph --random bert-base --data_dir GLUE --name export-bert-base-full
    python benchmarks/export_figures.py latency --run RUN --name export-latency-minilm-full
    python benchmarks/export_figures.py summary export-minilm-full export-bert-base-full --name export-full

`graph` exports FP32, FP16, INT8 and INT8 with FP16, the latter two also with --fuse_qkv, lints each file, builds each plan, and
compares the logits of each file, run by ONNX Runtime, with torch's, FP32 and fake-quantized, over rows of the STS-B development
set. RUN is a finished run of finetune.py; --random takes weights at random, calibrated on the same rows, for sizes and builds.
`latency` times FP32, INT8 and ONNX Runtime's own dynamic quantization of the FP32 file in turn, in one process: of signed
weights, its default, and of unsigned ones, which a CPU without VNNI needs for right sums.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from q8trt import files
from q8trt.engine.build_process import build_plan
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import ShapeProfile
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.gpu_check.models import random_pair
from q8trt.gpu_check.random_models import SIZES
from q8trt.hardware.provenance import provenance
from q8trt.lint import LintConfig, lint
from q8trt.models import checkpoints, load_tokenizer
from q8trt.quantization.precision import Precision
from q8trt.reporting import Column, Table, words
from q8trt.reporting.markdown import markdown_table
from q8trt.reporting.parity import Difference
from q8trt.runs.run import open_run
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.tasks.data import DataConfig, bucketed_batches, load_dev, tokenize
from q8trt.tasks.glue import get_task

RESULTS = Path(__file__).parent / "results"
NAMES = ("input_ids", "attention_mask", "token_type_ids")
SHAPES = ((1, 32), (1, 128), (16, 128))
MAX_SHAPES = (32, 128)
#: What `graph` measures: name -> (precision, whether Q, K and V are one GEMM).
VARIANTS = {name: (name, False) for name in Precision} | {
    f"{name} --fuse_qkv": (name, True) for name in Precision if name.is_quantized
}


def batches_of(args: argparse.Namespace, tokenizer: Any) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Rows of the STS-B development set in length buckets, input name -> int32 (batch, sequence); and their labels."""
    examples = load_dev(DataConfig(task="STS-B", data_dir=args.data_dir))
    features = tokenize(next(iter(examples.values())), tokenizer, 128)
    ordered = list(bucketed_batches(features, 16, tokenizer.pad_token_id))  # by length: take some of every length
    chosen = ordered[:: len(ordered) // args.batches or 1] if args.batches else ordered
    labels = np.concatenate([batch.labels for batch in chosen])
    return [{name: batch.arrays[name].astype(np.int32) for name in NAMES} for batch in chosen], labels


def logits_of_torch(model: Any, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """(rows, 1), float32."""
    with torch.no_grad():
        return np.concatenate(
            [model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits for batch in batches]
        )


def logits_of_file(path: Path, precision: Precision, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    """(rows, 1), float32, by ONNX Runtime on the CPU."""
    with OnnxRuntimeRunner(path, precision) as runner:
        return np.concatenate([runner.infer(batch) for batch in batches])


def models_of(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(FP32 model, quantized model, tokenizer)."""
    if args.run:
        run = open_run(args.run)
        return (
            checkpoints.load_finetuned(run.path / "fp32", get_task("STS-B")),
            checkpoints.load_quantized(run.path / args.stage)[0],
            load_tokenizer(str(run.path / "fp32")),
        )
    tokenizer = load_tokenizer("minilm")  # BERT's own vocabulary
    rows, _ = batches_of(argparse.Namespace(data_dir=args.data_dir, batches=2), tokenizer)
    return *random_pair(args.random, args.recipe, rows), tokenizer


def figures_of(path: Path, precision: Precision, exported: Any, plan: Any, seconds: float) -> dict[str, Any]:
    """Return the figures of the file and the plan."""
    report = lint(path, LintConfig(MAX_SHAPES))
    forecast = dataclasses.asdict(report.forecast)
    if not precision.is_half:
        del forecast["fp32_compute_ops"]  # all of what is not INT8: compute_ops_by_type counts them
    findings: dict[str, int] = {}
    for finding in report.findings:
        key = f"{finding.level}: {finding.rule}"
        findings[key] = findings.get(key, 0) + 1
    return {
        "onnx_bytes": path.stat().st_size,
        "export_seconds": round(seconds, 1),
        "kept_fp32": [dataclasses.asdict(op) for op in exported.kept_fp32],
        "forecast": forecast,
        "findings": findings,
        "plan_bytes": plan.bytes,
        "build_seconds": round(plan.seconds, 1),
        "build_peak_mib": plan.peak_memory_mib and round(plan.peak_memory_mib),
        "engine": dataclasses.asdict(plan.report),
    }


def graph(args: argparse.Namespace) -> Iterator[str]:
    """Export, lint, build and compare; the results are written, the lines are what to print."""
    float_model, quantized, tokenizer = models_of(args)
    batches, labels = batches_of(args, tokenizer)
    expected = {"torch_fp32": logits_of_torch(float_model, batches), "fake_quant": logits_of_torch(quantized, batches)}
    config = BuildConfig(profiles=(ShapeProfile((1, 1), (16, 128), MAX_SHAPES),))
    fixed = BuildConfig(profiles=(ShapeProfile(MAX_SHAPES, MAX_SHAPES, MAX_SHAPES),))
    entries: dict[str, Any] = {}
    for name, (precision, fuse_qkv) in VARIANTS.items():
        model = quantized if precision.is_quantized else float_model
        with tempfile.TemporaryDirectory() as folder:
            path, started = Path(folder) / "model.onnx", time.perf_counter()
            exported = export_onnx(model, path, precision, NAMES, ExportOptions(args.exporter, fuse_qkv), batches[:4])
            seconds = time.perf_counter() - started
            plan = build_plan(path, Path(folder) / "model.plan", config)
            entry = figures_of(path, precision, exported, plan, seconds)
            entry["plan_fixed_bytes"] = build_plan(path, Path(folder) / "fixed.plan", fixed).bytes
            logits = logits_of_file(path, precision, batches)
        entry["logits"] = {source: _difference(logits, reference) for source, reference in expected.items()}
        if args.run:
            entry["pearson"] = round(float(np.corrcoef(logits[:, 0], labels)[0, 1]), 4)
        entries[name] = entry
        yield f"{name:20} onnx {entry['onnx_bytes'] / 2**20:8.1f} MiB, plan {entry['plan_bytes'] / 2**20:8.1f} MiB"
    base = entries["fp32"]
    for entry in entries.values():
        entry["onnx_ratio"] = round(entry["onnx_bytes"] / base["onnx_bytes"], 4)
        entry["plan_ratio"] = round(entry["plan_bytes"] / base["plan_bytes"], 4)
        entry["plan_fixed_ratio"] = round(entry["plan_fixed_bytes"] / base["plan_fixed_bytes"], 4)
    rows = sum(len(batch["input_ids"]) for batch in batches)
    record = {
        "model": open_run(args.run).path.name if args.run else args.random,
        "weights": "real" if args.run else "random",
        "stage": args.stage,
        "logits_rows": rows,
        "logits_by": "ONNX Runtime, CPU",
        "fake_quant_against_torch_fp32": _difference(expected["fake_quant"], expected["torch_fp32"]),
        "precisions": entries,
    }
    files.write_json(RESULTS / f"{args.name}.json", record | {"provenance": provenance(sys.argv)})


def _difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    return dataclasses.asdict(Difference.between(first, second))


def summary(args: argparse.Namespace) -> Iterator[str]:
    """One Markdown table of what `graph` stored for several models."""
    columns = ("model", "precision", "GEMMs INT8", "BMMs INT8", "residual Adds INT8", "FP32 ops", "idle Q/DQ", "ONNX MiB",
            "of FP32", "plan MiB", "of FP32", "build s", "peak MiB", "logits: to torch FP32", "to fake-quant")  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for name in args.results:
        record = files.read_json(RESULTS / f"{name}.json")
        for precision, entry in record["precisions"].items():
            seen, apart = entry["forecast"], entry["logits"]
            kinds = [f"{seen[f'int8_{kind}']}/{seen[kind]}" for kind in ("gemms", "bmms", "residual_adds")]
            sizes = [f"{entry[f'{kind}_{figure}']:.3f}" if figure == "ratio" else f"{entry[f'{kind}_{figure}'] / 2**20:.1f}"
                     for kind in ("onnx", "plan") for figure in ("bytes", "ratio")]  # fmt: skip
            logits = [f"{each['largest']:.2g} ({each['mean']:.2g})" for each in apart.values()]
            cells = [record["model"], precision, *kinds, seen["compute_ops_by_type"]["fp32"], seen["dangling_qdq"],
                     *sizes, entry["build_seconds"], entry["build_peak_mib"], *logits]  # fmt: skip
            rows.append(tuple(map(str, cells)))
    title = "# Recipe `full` before it runs: the linter's counts, sizes, build with tensorrt-rtx, logits by ONNX Runtime (CPU)"
    note = "Logits: largest difference (mean) over rows of the STS-B development set. Weights of BERT-base and -large are random."
    table = Table((*map(words, columns[:2]), *map(Column, columns[2:])), tuple(rows))
    text = "\n".join([title, "", note, "", *markdown_table(table)])
    files.write_text(RESULTS / f"{args.name}.md", text)
    yield text


def latency(args: argparse.Namespace) -> Iterator[str]:
    """Time the three files in turn."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float_model, quantized, _ = models_of(args)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = ("fp32", "int8", "dynamic", "dynamic_unsigned")
        paths = {name: Path(folder) / f"{name}.onnx" for name in names}
        export_onnx(float_model, paths["fp32"], Precision.FP32, NAMES, ExportOptions(args.exporter))
        export_onnx(quantized, paths["int8"], Precision.INT8, NAMES, ExportOptions(args.exporter))
        quantize_dynamic(paths["fp32"], paths["dynamic"], weight_type=QuantType.QInt8)
        quantize_dynamic(paths["fp32"], paths["dynamic_unsigned"], weight_type=QuantType.QUInt8)
        runners = {
            name: OnnxRuntimeRunner(path, Precision.INT8 if name == "int8" else Precision.FP32, threads=args.threads)
            for name, path in paths.items()
        }
        for shape in SHAPES:
            milliseconds = timed(runners, shape, args.iterations if shape[0] == 1 else max(args.iterations // 10, 10))
            row: dict[str, float] = {"batch": shape[0], "sequence": shape[1]}
            for name, times in milliseconds.items():
                row |= {f"{name}_ms_median": float(np.median(times)), f"{name}_ms_p95": float(np.percentile(times, 95))}
                row[f"{name}_to_fp32"] = float(np.median(times) / np.median(milliseconds["fp32"]))
            rows.append({key: round(value, 3) for key, value in row.items()})
            yield "  ".join(f"{key} {value}" for key, value in rows[-1].items())
    threads = "default threads" if args.threads is None else f"{args.threads} threads"
    note = f"median of interleaved calls, host wall time, ONNX Runtime CPU, spinning off, {threads}"
    files.write_json(
        RESULTS / f"{args.name}.json",
        {"model": open_run(args.run).path.name, "measured": note, "rows": rows, "provenance": provenance(sys.argv)},
    )


def timed(runners: dict[str, Any], shape: tuple[int, int], iterations: int) -> dict[str, list[float]]:
    """Milliseconds of each call after three that are not counted."""
    ids = np.random.default_rng(0).integers(1000, 20000, shape).astype(np.int32)
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    milliseconds: dict[str, list[float]] = {name: [] for name in runners}
    for iteration in range(iterations + 3):
        for name, runner in runners.items():
            started = time.perf_counter()
            runner.infer(arrays)
            if iteration >= 3:
                milliseconds[name].append((time.perf_counter() - started) * 1e3)
    return milliseconds


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("graph", "latency", "summary"))
    parser.add_argument("results", nargs="*", help="of `summary`: names of files that `graph` wrote")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", metavar="RUN", help="a finished run of finetune.py")
    source.add_argument("--random", choices=SIZES, help="weights at random")
    parser.add_argument("--stage", default="int8", choices=("int8", "ptq"), help="which quantized checkpoint of RUN")
    parser.add_argument("--recipe", default="full", help="with --random (default: full)")
    parser.add_argument("--exporter", default="dynamo")
    parser.add_argument("--data_dir", help="the GLUE folder (default: the hub)")
    parser.add_argument(
        "--batches", type=int, help="compare logits on N batches of 16 of all lengths (default: all rows)"
    )
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--threads", type=int, help="of ONNX Runtime, with `latency`; default: the physical cores")
    parser.add_argument("--name", required=True, help="of the file under benchmarks/results")
    args = parser.parse_args()
    if args.what != "summary" and not (args.run or (args.random and args.what == "graph")):
        parser.error(f"{args.what} needs --run RUN" + (" or --random MODEL" if args.what == "graph" else ""))
    for line in {"graph": graph, "latency": latency, "summary": summary}[args.what](args):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
