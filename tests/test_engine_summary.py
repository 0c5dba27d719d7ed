"""The summary of an engine that was built: forecast beside engine on the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from test_manifest import MANIFEST

from q8trt.engine.determinism import PlanDifference
from q8trt.engine.manifest_file import load_manifest, write_manifest
from q8trt.engine.record import BuildRecord, EngineRecord, ExportRecord
from q8trt.engine.report import EngineReport
from q8trt.export.report import KeptOp
from q8trt.quantization.precision import Precision
from q8trt.reporting.engine_summary import engine_table, file_lines, remark_lines
from q8trt.reporting.terminal import print_table

FORECAST = {
    "gemms": 38, "int8_gemms": 36, "bmms": 12, "int8_bmms": 12, "fusable_attentions": 6, "residual_adds": 12,
    "int8_residual_adds": 11, "compute_ops_by_type": {"int8": 60, "fp32": 98}, "int8_weight_bytes": 3 << 20,
    "float_weight_bytes": 1 << 19,
}  # fmt: skip
ENGINE = EngineReport(
    "builder log", 1, gemms=38, int8_gemms=35, bmms=12, int8_bmms=10, fused_attentions=5, int8_residual_adds=4,
    layers_by_precision={"INT8": 30, "FP32": 43}, reformats=7, weights_bytes=4 << 20, activation_bytes=50 << 20,
)  # fmt: skip
BUILD = BuildRecord(1.234, 395.6)


def rows(forecast: dict[str, Any], engine: EngineReport, build: BuildRecord) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    print_table(console, engine_table(EngineRecord(forecast=forecast, engine=engine, build=build)))
    return [" ".join(line.split()) for line in console.file.getvalue().rstrip().splitlines()]  # type: ignore[attr-defined]


def test_forecast_and_engine_stand_side_by_side() -> None:
    lines = rows(FORECAST, ENGINE, BUILD)
    assert lines[:2] == ["forecast engine", "(graph) (builder log)"]
    assert lines[3:] == [
        "GEMMs in INT8 36 of 38 35 of 38",
        "attention BMMs in INT8 12 of 12 10 of 12",
        "fused attentions 6 5",
        "residual adds in INT8 11 of 12 4",
        "in INT8, FP16, FP32 60, 0, 98 ops 30, 0, 43 layers",
        "reformats 7",
        "weights 3.5 MiB 4.0 MiB",
        "activations 50.0 MiB",
        "build time 1.2 s",
        "build memory, peak 396 MiB",
    ]


def test_what_is_not_known_is_a_dash() -> None:
    lines = rows(FORECAST, EngineReport("inspector", 1), BuildRecord(1.234, None))
    assert lines[3] == "GEMMs in INT8 36 of 38 -"
    assert lines[7].endswith("60, 0, 98 ops -")
    assert lines[-1] == "build memory, peak -"
    assert "0" not in "".join(line.rpartition(" ")[2] for line in lines[3:-2])


def test_a_second_build_is_reported() -> None:
    assert rows(FORECAST, ENGINE, replace(BUILD, built_twice=PlanDifference((9, 9))))[-1] == "built twice the same"
    assert rows(FORECAST, ENGINE, replace(BUILD, built_twice=PlanDifference((9, 8))))[-1] == "built twice differs"


def test_files_and_remarks(tmp_path: Path) -> None:
    for name, size in (("model.onnx", 3 << 20), ("model.plan", 1 << 20)):
        (tmp_path / name).write_bytes(bytes(size))
    write_manifest(tmp_path, MANIFEST)
    manifest = load_manifest(tmp_path)
    assert file_lines(tmp_path, manifest) == [
        f"int8 engine: {tmp_path}",
        "  model.onnx       3.0 MiB",
        "  model.plan       1.0 MiB  tensorrt_rtx 1.7.1.116, SM 8.6, 8.9, batch x sequence 1x1 to 32x64, best at 16x64; "
        "1x65 to 8x128, best at 8x128",
    ]
    assert remark_lines(tmp_path, manifest) == []
    record = EngineRecord(
        build=replace(BUILD, built_twice=PlanDifference((9, 8))), engine=replace(ENGINE, notes=("INT8 is emulated",)),
        export=ExportRecord(kept_fp32=(KeptOp("/pooler", "Tanh", "reaches 70000"),), overflow_rows="48 rows"), findings=2,
    )  # fmt: skip
    difference, kept, operation, note, findings = remark_lines(
        tmp_path, replace(manifest, precision=Precision.INT8_FP16, report=record.to_dict())
    )
    assert difference.startswith("  built twice: ")
    assert kept == "  kept in FP32 after a trial on 48 rows: 1 operation"
    assert (operation, note) == ("    /pooler: reaches 70000", "  note: INT8 is emulated")
    assert findings.startswith("  2 warnings of the linter: ")
