"""The linter on ONNX files made without q8trt's passes: ModelOpt's plain export and onnxruntime's static quantization.

    python benchmarks/foreign_models.py --output DIR

Writes DIR/modelopt.onnx (INT8_DEFAULT_CFG, calibrated on 64 rows, `torch.onnx.export(dynamo=False)`) and DIR/onnxruntime.onnx
(the FP32 export, `quantize_static` with its defaults on the same rows) of MiniLM, lints both, and writes what was found to
DIR/lint.json (with --name also to benchmarks/results/NAME.json).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from q8trt import files
from q8trt.export.onnx import export_onnx
from q8trt.hardware.provenance import provenance
from q8trt.lint import LintReport, lint
from q8trt.models import checkpoints, load_tokenizer
from q8trt.quantization.precision import Precision
from q8trt.reporting.lint_report import print_report
from q8trt.tasks.data import Collator, sample_examples, tokenize
from q8trt.tasks.glue import get_task

RESULTS = Path(__file__).parent / "results"
NAMES = ("input_ids", "attention_mask", "token_type_ids")
ROWS, BATCH = 64, 8


def calibration_batches(tokenizer: Any) -> list[dict[str, Any]]:
    """The first training rows of the built-in sample, as tensors of the model's inputs."""
    rows = tokenize(sample_examples("train"), tokenizer, max_length=64)
    collate = Collator(tokenizer.pad_token_id, max_length=64)
    batches = [collate([rows[index] for index in range(start, start + BATCH)]) for start in range(0, ROWS, BATCH)]
    return [{name: batch[name] for name in NAMES} for batch in batches]


def export_with_modelopt(model: Any, batches: list[dict[str, Any]], path: Path) -> None:
    """INT8_DEFAULT_CFG and torch's exporter, nothing else."""
    import modelopt.torch.quantization as mtq
    import torch

    def forward(quantized: Any) -> None:
        for batch in batches:
            quantized(**batch)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = mtq.quantize(model, mtq.INT8_DEFAULT_CFG, forward)
        axes = {name: {0: "batch", 1: "sequence"} for name in NAMES}
        torch.onnx.export(
            quantized,
            (),
            str(path),
            kwargs=batches[0],
            dynamo=False,
            opset_version=20,
            input_names=list(NAMES),
            output_names=["logits"],
            dynamic_axes=axes,
        )


def quantize_with_onnxruntime(float_path: Path, batches: list[dict[str, Any]], path: Path) -> None:
    """quantize_static as it comes: Q/DQ format, activations and weights as its defaults have them."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{name: tensor.int().numpy() for name, tensor in batch.items()} for batch in batches])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    quantize_static(str(float_path), str(path), Reader(), quant_format=QuantFormat.QDQ)


def summary(report: LintReport) -> dict[str, Any]:
    """The forecast, and for each rule how often it was found and where first."""
    counts = Counter((finding.level, finding.rule) for finding in report.findings)
    first = {(finding.level, finding.rule): finding for finding in reversed(report.findings)}
    return {
        "worst": report.worst,
        "forecast": dataclasses.asdict(report.forecast),
        "findings": [
            {"count": count, **dataclasses.asdict(first[key]), "fix": first[key].fix} for key, count in counts.items()
        ],
    }


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--name", help="also keep the findings as benchmarks/results/NAME.json")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model = checkpoints.load_pretrained("minilm", get_task("STS-B")).eval()
    batches = calibration_batches(load_tokenizer("minilm"))
    paths = [options.output / f"{name}.onnx" for name in ("fp32", "modelopt", "onnxruntime")]
    export_onnx(model, paths[0], Precision.FP32, NAMES)
    quantize_with_onnxruntime(paths[0], batches, paths[2])
    export_with_modelopt(model, batches, paths[1])
    reports = {}
    for path in paths[1:]:
        report = lint(path)
        print_report(report, Console())
        reports[path.stem] = {"bytes": path.stat().st_size, **summary(report)}
    result = {"models": reports, "provenance": provenance(sys.argv)}
    files.write_json(options.output / "lint.json", result)
    if options.name:
        files.write_json(RESULTS / f"{options.name}.json", result)


if __name__ == "__main__":
    main()
