"""A report of two rows, and a row on TensorRT, of figures that are easy to reckon with."""

from __future__ import annotations

from q8trt.quantization.precision import Precision
from q8trt.reporting import Report, Row
from q8trt.runtime.timing.latency import summarize
from q8trt.runtime.timing.lengths import Lengths

SHAPES = ((1, 128), (16, 128))
H100 = "NVIDIA H100 80GB HBM3"


def row(name: str, precision: str, score: float, medians_ms: tuple[float, ...], tensorrt: bool = False) -> Row:
    """A row whose medians, one per shape, are the given milliseconds."""
    backend, device = ("tensorrt", H100) if tensorrt else ("onnxruntime", "cpu")
    place = f"TensorRT, {H100}" if tensorrt else "ONNX Runtime, CPU"
    latencies = [
        summarize(*shape, [ms / 1000 * factor for factor in (0.9, 1.0, 1.1)])
        for shape, ms in zip(SHAPES, medians_ms, strict=False)
    ]
    return Row(
        name=name,
        place=place,
        backend=backend,
        device=device,
        precision=Precision(precision),
        metrics={"pearson": score, "spearman": score - 0.01},
        onnx_mib=86.8 if precision == "fp32" else 21.7,
        plan_mib=None if precision == "fp32" else 25.04,
        latencies=latencies,
        torch_metrics={"pearson": score + 0.001},
        lengths=Lengths(1500, 32, (16, 128), 128, 31.5, 300.0, 100.0),
        folder="runs/x/engine",
    )


FP32 = row("FP32", "fp32", 0.8676, (10.0, 1520.0))
INT8 = row("QAT INT8", "int8", 0.8739, (10.31, 1000.0))
TRT = row("QAT INT8", "int8", 0.8738, (0.5, 2.0), tensorrt=True)


def make_report() -> Report:
    """FP32 and INT8 on ONNX Runtime, on the CPU."""
    return Report(
        task="STS-B",
        split="dev",
        data_source="nyu-mll/glue from the hub",
        is_sample=False,
        rows_evaluated=1500,
        data_fingerprint="0123abcd",
        main_metric="pearson",
        rows=[FP32, INT8],
        provenance={"command": "python benchmark.py --sample", "git_commit": None, "hardware": {"gpus": []}},
        notes=["a note of the caller's"],
    )
