"""The summary of an engine that was built: forecast beside engine on the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from q8trt.engine.determinism import PlanDifference
from q8trt.engine.record import BuildRecord, EngineRecord
from q8trt.engine.report import EngineReport
from q8trt.reporting.engine_summary import engine_table
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
        "ops | layers in INT8, FP16, FP32 60, 0, 98 30, 0, 43",
        "reformats 7",
        "weights 3.5 MiB 4.0 MiB",
        "activations 50.0 MiB",
        "build time 1.2 s",
        "build memory, peak 396 MiB",
    ]


def test_what_is_not_known_is_a_dash() -> None:
    lines = rows(FORECAST, EngineReport("inspector", 1), BuildRecord(1.234, None))
    assert lines[3] == "GEMMs in INT8 36 of 38 -"
    assert lines[7].endswith("60, 0, 98 -")
    assert lines[-1] == "build memory, peak -"
    assert "0" not in "".join(line.rpartition(" ")[2] for line in lines[3:-2])


def test_a_second_build_is_told() -> None:
    assert rows(FORECAST, ENGINE, replace(BUILD, built_twice=PlanDifference((9, 9))))[-1] == "built twice the same"
    assert rows(FORECAST, ENGINE, replace(BUILD, built_twice=PlanDifference((9, 8))))[-1] == "built twice differs"
