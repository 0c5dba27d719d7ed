"""Reports: every figure labelled, none compared across backends, none cut off."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from q8trt.benchmarking import WHAT_IS_TIMED, summarize
from q8trt.reporting import Parity, Report, Row, markdown, print_report, verdict, write_report

SHAPES = ((1, 128), (16, 128))
H100 = "NVIDIA H100 80GB HBM3"
NO_GPU = "No GPU: figures are ONNX Runtime's on the CPU, not TensorRT's"


def row(name: str, precision: str, score: float, medians_ms: tuple[float, ...], tensorrt: bool = False) -> Row:
    """A row whose medians, one per shape, are the given milliseconds."""
    backend, device = ("tensorrt", H100) if tensorrt else ("onnxruntime", "cpu")
    place = f"TensorRT, {H100}" if tensorrt else "ONNX Runtime, CPU"
    latencies = [
        summarize(*shape, [ms / 1000 * factor for factor in (0.9, 1.0, 1.3)])
        for shape, ms in zip(SHAPES, medians_ms, strict=False)
    ]
    return Row(
        name=name,
        label=f"{place}, {precision}",
        backend=backend,
        device=device,
        precision=precision,
        metrics={"pearson": score, "spearman": score - 0.01},
        onnx_mib=86.8 if precision == "fp32" else 21.7,
        plan_mib=None if precision == "fp32" else 25.04,
        latencies=latencies,
        torch_metrics={"pearson": score + 0.001},
        eval_samples_per_s=123.4,
    )


FP32 = row("FP32", "fp32", 0.8676, (10.0, 1520.0))
INT8 = row("QAT INT8", "int8", 0.8739, (10.31, 1000.0))
TRT = row("QAT INT8", "int8", 0.8738, (0.5, 2.0), tensorrt=True)


@pytest.fixture
def report() -> Report:
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


def printed(report: Report, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_ratios_by_hand(report: Report) -> None:
    own, int8 = report.ratios(FP32)
    assert own.latency == {"1x128": 1.0, "16x128": 1.0}
    assert int8.latency == pytest.approx({"1x128": 1.031, "16x128": 1000 / 1520})
    assert int8.speed("16x128") == pytest.approx(1.52)
    assert int8.onnx_size == pytest.approx(0.25)
    assert int8.plan_size is None  # the baseline has no plan
    assert report.score_delta_x100(INT8) == pytest.approx(0.63)


def test_no_ratio_across_backends_or_devices(report: Report) -> None:
    elsewhere = replace(INT8, device=H100)
    mixed = replace(report, rows=[FP32, INT8, TRT, elsewhere])
    for ratio in mixed.ratios(FP32)[2:]:
        assert set(ratio.latency.values()) == {None}
        assert ratio.plan_size is None
        assert ratio.onnx_size == pytest.approx(0.25)  # the same kind of file everywhere
    assert mixed.baseline(TRT) is None
    assert mixed.to_dict()["rows"][2]["against"] is None
    assert f"QAT INT8 on TensorRT, {H100} has no FP32 row on the same backend and device to compare with" in verdict(
        mixed
    )
    assert not any("x as fast" in line and H100 in line for line in verdict(mixed))


def test_each_row_is_compared_with_fp32_of_its_own_place(report: Report) -> None:
    trt_fp32 = row("FP32", "fp32", 0.8676, (1.0, 8.0), tensorrt=True)
    mixed = replace(report, rows=[FP32, INT8, trt_fp32, TRT])
    assert mixed.baseline(TRT) is trt_fp32
    assert mixed.speed(TRT, "16x128") == pytest.approx(4.0)
    assert f"QAT INT8 is 4.00x as fast as FP32 at 16x128 on TensorRT, {H100}" in verdict(mixed)


def test_faster_only_where_measured(report: Report) -> None:
    assert verdict(report) == [
        "QAT INT8 is NOT faster than FP32 at 1x128 on ONNX Runtime, CPU (0.97x)",
        "QAT INT8 is 1.52x as fast as FP32 at 16x128 on ONNX Runtime, CPU",
    ]


def test_a_hair_faster_is_not_faster(report: Report) -> None:
    close = replace(report, rows=[FP32, row("QAT INT8", "int8", 0.87, (9.9, 1520.0))])
    assert all("NOT faster" in line for line in verdict(close))


def test_a_shape_not_timed_is_not_judged(report: Report) -> None:
    partial = replace(report, rows=[FP32, replace(INT8, latencies=INT8.latencies[:1])])
    assert len(verdict(partial)) == 1
    assert partial.ratios(FP32)[1].latency["16x128"] is None


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_number_is_cut(report: Report, width: int) -> None:
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    tokens = set(text.split())
    expected = {"86.76", "87.39", "+0.63", "86.8", "21.7", "25.0", "10.00", "10.31", "1520.0", "1000.0", "0.97x"}
    assert {*expected, "1.52x", "1x128", "16x128", "pearson", "x100", "MiB"} <= tokens


@pytest.mark.parametrize("width", [100, 160])
def test_one_line_per_row_names_its_place(report: Report, width: int) -> None:
    lines = [line.split("  ") for line in printed(report, width).splitlines()]
    assert [line[0] for line in lines if "ONNX Runtime, CPU" in map(str.strip, line)] == ["FP32", "QAT INT8"]


@pytest.mark.parametrize("width", [80, 100])
def test_a_gpus_long_name_and_many_shapes_fit(report: Report, width: int) -> None:
    latencies = [summarize(batch, 384, [0.1 * batch]) for batch in (1, 2, 4, 8, 16, 32)]
    wide = replace(
        report, rows=[replace(TRT, precision="fp32", latencies=latencies), replace(TRT, latencies=latencies)]
    )
    text = printed(wide, width)
    assert max(map(len, text.splitlines())) <= width
    assert {"1x384", "32x384", "3200.0", "100.0"} <= set(text.split())
    assert "H100" in text


def test_sample_is_labelled_everywhere(report: Report) -> None:
    sample = replace(report, is_sample=True)
    label = "built-in sample, not GLUE"
    for text in (printed(sample, 80), printed(sample, 100), markdown(sample)):
        assert text.splitlines()[0].endswith(label)
    assert f"pearson x100 ({label})" in markdown(sample)
    assert f"## Scores, {label}" in markdown(sample)
    data = sample.to_dict()
    assert (data["is_sample"], data["data_source"]) == (True, label)
    assert label in data["title"]
    for text in (printed(report, 80), markdown(report), json.dumps(report.to_dict())):
        assert "not GLUE" not in text


def test_note_without_tensorrt(report: Report) -> None:
    assert report.all_notes == ["a note of the caller's", NO_GPU]
    assert report.to_dict()["notes"] == report.all_notes
    assert f"Note: {NO_GPU}" in unwrapped(printed(report, 80))
    assert f"Note: {NO_GPU}" in markdown(report)
    assert NO_GPU not in replace(report, rows=[FP32, TRT]).all_notes
    # With a GPU in the machine, or other backends, the note says no more than is so.
    gpu = replace(report, provenance={"hardware": {"gpus": [H100]}})
    assert gpu.all_notes[-1] == "No figure was taken on TensorRT: they are those of ONNX Runtime, CPU"
    assert replace(report, rows=[]).all_notes == ["a note of the caller's"]


def test_to_dict_has_units_in_its_keys(report: Report) -> None:
    data = report.to_dict()
    assert (data["schema"], data["what_is_timed"]) == (1, WHAT_IS_TIMED)
    int8 = data["rows"][1]
    assert int8["latencies"][1]["median_ms"] == pytest.approx(1000.0)
    assert int8["metrics"]["pearson"] == 0.8739
    assert int8["score_x100"] == pytest.approx(87.39)
    assert (int8["onnx_mib"], int8["plan_mib"], int8["eval_samples_per_s"]) == (21.7, 25.04, 123.4)
    assert int8["against"]["baseline"] == "FP32"
    assert int8["against"]["median_latency_ratio"]["16x128"] == pytest.approx(1000 / 1520)


def test_markdown(report: Report) -> None:
    text = markdown(report)
    assert (
        "| QAT INT8 | ONNX Runtime, CPU | int8 | 87.39 | +0.63 | 21.7 | 25.0 | 10.31 | 0.97x | 1000.0 | 1.52x |" in text
    )
    assert "| QAT INT8 | ONNX Runtime, CPU | 87.39 | 86.39 | 87.49 | - | 123.4 |" in text
    # Percentiles of 0.9, 1 and 1.3 s: p90 is 0.8 of the way from the second to the third.
    percentiles = "1000.0 | 1066.7 | 1240.0 | 1270.0 | 1294.0 | 900.0 | 170.0"
    assert f"| QAT INT8 | ONNX Runtime, CPU | 16x128 | 3 | {percentiles} | 16.0 |" in text
    assert WHAT_IS_TIMED in text
    assert "- command: `python benchmark.py --sample`" in text
    assert "- git_commit: unknown" in text
    assert all(line in text for line in verdict(report))


def test_nothing_scored_or_timed(report: Report) -> None:
    bare = replace(FP32, metrics={}, latencies=[], torch_metrics=None, eval_samples_per_s=None)
    for rows in ([], [bare]):
        empty = replace(report, rows=rows)
        assert verdict(empty) == []
        assert printed(empty, 80)
        assert "## Provenance" in markdown(empty)
        json.dumps(empty.to_dict(), allow_nan=False)


def test_words_with_markup_are_printed_as_they_are(report: Report) -> None:
    odd = replace(report, rows=[replace(FP32, name="[red]a|b")], notes=["[bold]n"])
    assert "[red]a|b" in printed(odd, 100)
    assert "Note: [bold]n" in printed(odd, 100)
    assert "| [red]a\\|b |" in markdown(odd)


def test_rounding_leaves_no_minus_zero(report: Report) -> None:
    same = replace(report, rows=[FP32, replace(INT8, metrics={"pearson": 0.8676 - 1e-6})])
    assert "-0.00" not in printed(same, 100)
    assert "+0.00" in printed(same, 100)


def test_write_report(report: Report, tmp_path: Path) -> None:
    json_path, markdown_path = write_report(tmp_path / "out", report)
    assert (json_path.name, markdown_path.name) == ("benchmark.json", "benchmark.md")
    assert json.loads(json_path.read_text(encoding="utf-8")) == json.loads(json.dumps(report.to_dict()))
    assert markdown_path.read_text(encoding="utf-8") == markdown(report)
    assert {path.name for path in write_report(tmp_path / "other", report, name="sts-b")} == {"sts-b.json", "sts-b.md"}


def test_write_report_refuses_nan_and_leaves_nothing(report: Report, tmp_path: Path) -> None:
    bad = replace(report, rows=[replace(FP32, metrics={"pearson": float("nan")})])
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []


def test_throughput_is_on_the_terminal(report: Report) -> None:
    assert "samples/s on dev, in length buckets: FP32 123, QAT INT8 123" in unwrapped(printed(report, 100))
    silent = replace(report, rows=[replace(row, eval_samples_per_s=None) for row in report.rows])
    assert "samples/s" not in printed(silent, 100)


def test_parity_is_told_in_notes_and_json(report: Report) -> None:
    rows = [FP32, replace(INT8, parity=Parity(0.125, 0.008, 4.75))]
    told = replace(report, rows=rows)
    note = (
        "logits of ONNX Runtime, CPU differ from the torch model's by at most 0.12, 0.008 on average (logits reach 4.8)"
    )
    assert f"Note: QAT INT8: {note}" in markdown(told)
    assert told.to_dict()["rows"][1]["parity"]["largest_logit_difference"] == 0.125
    assert not any("logits" in remark for remark in report.all_notes)


def test_a_report_without_scores_is_called_timing_only(report: Report) -> None:
    assert replace(report, rows_evaluated=0, split="-").title == "STS-B, timing only"
