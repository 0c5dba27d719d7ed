"""The gate: which figures pass, which do not, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from report_fixtures import FP32, INT8, TRT, make_report, row

from q8trt.errors import ConfigError
from q8trt.reporting import Gate, Report
from q8trt.reporting.benchmark_tables import summary
from q8trt.tasks.metrics import METRICS


@pytest.fixture
def report() -> Report:
    return make_report()


def test_gate(report: Report) -> None:
    assert Gate(max_drop=0.0).failures(report) == []  # INT8 gains
    worse = replace(report, rows=[FP32, replace(INT8, metrics={"pearson": 0.8576})])
    assert Gate(max_drop=1.0).failures(worse) == []  # exactly 1.00
    assert Gate(max_drop=0.99).failures(worse) == [
        "QAT INT8 on ONNX Runtime, CPU loses 1.00 points of pearson against the FP32 engine (85.76 of 86.76), "
        "more than --max_drop 0.99"
    ]
    assert Gate(min_speedup=0.96).failures(report) == []
    assert Gate(min_speedup=1.5).failures(report) == [
        "QAT INT8 on ONNX Runtime, CPU is 0.97x as fast as FP32 at 1x128, less than --min_speedup 1.5"
    ]
    assert len(Gate(0.99, 1.5).failures(worse)) == 2
    assert bool(Gate()) is False


def test_an_error_loses_where_it_grows(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(Any, METRICS), "pearson", replace(METRICS["pearson"], higher_is_better=False))
    (failure,) = Gate(max_drop=0.5).failures(report)
    assert "loses 0.63 points of pearson against the FP32 engine (87.39 of 86.76)" in failure
    worse = replace(report, rows=[FP32, replace(INT8, metrics={"pearson": 0.8576})])
    assert Gate(max_drop=0.0).failures(worse) == []
    assert summary(report).legend.startswith("pearson: lower is better; ")


def test_gate_without_fp32_here_takes_torchs(report: Report) -> None:
    alone = replace(report, rows=[replace(INT8, fp32_metrics={"pearson": 0.88})])
    (failure,) = Gate(max_drop=0.5).failures(alone)
    assert "loses 0.61 points of pearson against torch FP32 as recorded in its run (87.39 of 88.00)" in failure
    assert Gate(max_drop=0.62).failures(alone) == []


def test_what_was_not_measured_does_not_pass_the_gate(report: Report) -> None:
    elsewhere = replace(report, rows=[FP32, replace(TRT, metrics={})])
    assert [failure.partition(": ")[2] for failure in Gate(1.0, 1.0).failures(elsewhere)] == [
        "drop of pearson is unknown: the row has no score",
        "speed at 1x128 is unknown: no FP32 row has the same backend and device",
        "speed at 16x128 is unknown: no FP32 row has the same backend and device",
    ]
    assert Gate(1.0).failures(replace(report, rows=[FP32])) == ["the report has only FP32 rows, and no row to judge"]


@pytest.mark.parametrize("values", [(float("nan"), None), (None, 0.0), (None, -1.0), (None, float("inf"))])
def test_gate_refusals(values: tuple[float | None, float | None]) -> None:
    with pytest.raises(ConfigError, match=r"--max_drop nan, expected points|--min_speedup .*, expected a positive"):
        Gate(*values)


@pytest.mark.parametrize(("speedup", "tone"), [(0.9, "good"), (1.5, "bad")])
def test_the_result_is_a_banner(report: Report, speedup: float, tone: str) -> None:
    gate = Gate(max_drop=1.0, min_speedup=speedup)
    required = f"required: at most 1 point of pearson lost against FP32 and at least {speedup:g}x as fast as FP32 at each shape"
    judgment = "Gate passed" if tone == "good" else "Gate not passed"
    text = report.to_markdown(gate)
    assert text.splitlines()[2] == f"> **{judgment}** ({required})"
    page = report.to_html(gate)
    head = page[: page.index("<dl")]
    assert f'<div class="banner {tone}"><p><b>{judgment}</b> ({required})</p>' in head
    failure = "QAT INT8 on ONNX Runtime, CPU is 0.97x as fast as FP32 at 1x128, less than --min_speedup 1.5"
    assert (f"> - {failure}" in text) is (f"<li>{failure}</li>" in head) is (tone == "bad")
    assert "Gate " not in report.to_markdown()
    assert 'class="banner' not in report.to_html()


def test_int8_is_judged_and_fp16_only_without_it(report: Report) -> None:
    half = row("FP16", "fp16", 0.5, (20.0, 3000.0), tensorrt=True)
    rows = [row("FP32", "fp32", 0.8676, (1.0, 8.0), tensorrt=True), half]
    assert len(Gate(1.0, 1.0).failures(replace(report, rows=rows))) == 3
    assert Gate(1.0, 1.0).failures(replace(report, rows=[*rows, TRT])) == []
    widened = replace(report, rows=[FP32, row("FP16", "fp16", 0.8676, (5.0, 760.0))])
    assert Gate(1.0, 1.0).failures(widened)[0] == (
        "FP16 on ONNX Runtime, CPU: speed at 1x128 is unknown: it computes FP16 in FP32"
    )


def test_gate_is_in_the_json(report: Report) -> None:
    assert report.to_dict()["gate"] is None
    gate = report.to_dict(Gate(min_speedup=1.5))["gate"]
    assert (gate["passed"], gate["min_speedup_ratio"], gate["max_drop_points"]) == (False, 1.5, None)
    assert len(gate["failures"]) == 1
