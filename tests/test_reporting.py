"""Reports: every figure labeled, none compared across backends, none cut off."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from report_fixtures import FP32, H100, INT8, TRT, make_report, row
from rich.console import Console

from q8trt.hardware.gpu import GpuState
from q8trt.quantization.precision import Precision
from q8trt.reporting import (
    Gate,
    Parity,
    Report,
    Row,
    print_report,
    write_report,
)
from q8trt.reporting import verdict as verdict_phrases
from q8trt.reporting.benchmark_tables import summary
from q8trt.runtime.timing.latency import WHAT_IS_TIMED, WHAT_IS_TIMED_ON_DEVICES, TimingWarning, summarize
from q8trt.runtime.timing.layers import LayerTime, LayerTimes
from q8trt.tasks.metrics import METRICS

ON_CPU = "These are ONNX Runtime's figures on the CPU; they do not forecast a GPU's"


@pytest.fixture
def report() -> Report:
    return make_report()


def printed(report: Report, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def markdown(report: Report) -> str:
    return report.to_markdown()


def verdict(report: Report) -> list[str]:
    return [phrase.text for phrase in verdict_phrases(report)]


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_ratios_by_hand(report: Report) -> None:
    own, int8 = (report.ratio(row, FP32) for row in report.rows)
    assert own.latency == {"1x128": 1.0, "16x128": 1.0}
    assert int8.latency == pytest.approx({"1x128": 1.031, "16x128": 1000 / 1520})
    assert int8.speed("16x128") == pytest.approx(1.52)
    assert int8.onnx_size == pytest.approx(0.25)
    assert int8.plan_size is None  # the baseline has no plan
    assert report.score_delta_x100(INT8) == pytest.approx(0.63)


def test_no_ratio_across_backends_or_devices(report: Report) -> None:
    elsewhere = replace(INT8, device=H100)
    mixed = replace(report, rows=[FP32, INT8, TRT, elsewhere])
    for ratio in (mixed.ratio(each, FP32) for each in mixed.rows[2:]):
        assert set(ratio.latency.values()) == {None}
        assert ratio.plan_size is None
        assert ratio.onnx_size == pytest.approx(0.25)  # the same kind of file everywhere
    assert mixed.baseline(TRT) is None
    assert mixed.to_dict()["rows"][2]["against"] is None
    assert f"QAT INT8 on TensorRT, {H100} has no FP32 row on the same backend and device to compare with" in verdict(
        mixed
    )
    assert not any("x as fast" in line and H100 in line for line in verdict(mixed))
    assert not any("CPU" in line and "forecast" in line for line in verdict(mixed))


def test_each_row_is_compared_with_fp32_of_its_own_place(report: Report) -> None:
    trt_fp32 = row("FP32", "fp32", 0.8676, (1.0, 8.0), tensorrt=True)
    mixed = replace(report, rows=[FP32, INT8, trt_fp32, TRT])
    assert mixed.baseline(TRT) is trt_fp32
    assert mixed.speed(TRT, "16x128") == pytest.approx(4.0)
    assert f"QAT INT8 on TensorRT, {H100} is 2.00x as fast as FP32 at 1x128 and 4.00x at 16x128, and gains" in "".join(
        verdict(mixed)
    )


def test_faster_only_where_measured_and_with_its_accuracy(report: Report) -> None:
    assert verdict(report) == [
        "QAT INT8 is 1.52x as fast as FP32 at 16x128 but slower at 1x128 (0.97x), and gains 0.63 points of pearson "
        "(from 86.76 to 87.39)",
        ON_CPU,
    ]
    (phrase, _) = verdict_phrases(report)
    assert phrase.tone == "warning"  # neither a gain nor a loss alone


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"pearson": 0.8664}, ", and loses 0.12 points of pearson (from 86.76 to 86.64)"),
        ({"pearson": 0.86763}, ", and has the same pearson (86.76)"),
        ({}, "; its accuracy was not measured"),
    ],
)
def test_every_speed_has_its_accuracy(report: Report, metrics: dict[str, float], says: str) -> None:
    lines = verdict(replace(report, rows=[FP32, replace(INT8, metrics=metrics)]))
    assert [line for line in lines if "as fast as" in line] == [line for line in lines if line.endswith(says)]
    assert lines[0].endswith(says)


def test_an_error_is_lost_where_it_grows(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(Any, METRICS), "pearson", replace(METRICS["pearson"], higher_is_better=False))
    assert verdict(report)[0].endswith(", and loses 0.63 points of pearson (from 86.76 to 87.39)")


def test_a_row_that_is_slower_everywhere_or_faster_everywhere(report: Report) -> None:
    slow, fast = (row("QAT INT8", "int8", 0.87, times) for times in ((20.0, 3040.0), (5.0, 760.0)))
    (slower, *_), (faster, *_) = (verdict_phrases(replace(report, rows=[FP32, each])) for each in (slow, fast))
    assert slower.text.startswith("QAT INT8 is slower than FP32 at 1x128 (0.50x) and 16x128 (0.50x), and ")
    assert faster.text.startswith("QAT INT8 is 2.00x as fast as FP32 at 1x128 and 2.00x at 16x128, and ")
    assert (slower.tone, faster.tone) == ("bad", "good")


def test_many_shapes_are_a_range(report: Report) -> None:
    def timed(each: Row, factor: float) -> Row:
        return replace(each, latencies=[summarize(n, 128, [n / 100 * factor * (1 + n / 10)]) for n in (1, 2, 4, 8)])

    grid = replace(report, rows=[replace(timed(FP32, 1), latencies=timed(FP32, 1).latencies), timed(INT8, 0.5)])
    assert verdict(grid)[0].startswith("QAT INT8 is 2.00x as fast as FP32 at all 4 shapes, and ")
    longer = [*grid.rows[1].latencies, *(summarize(n, 256, [n / 10]) for n in (1, 2))]
    fp32 = [*grid.rows[0].latencies, *(summarize(n, 256, [n / 20]) for n in (1, 2))]
    partly = replace(grid, rows=[replace(grid.rows[0], latencies=fp32), replace(INT8, latencies=longer)])
    assert verdict(partly)[0].startswith(
        "QAT INT8 is 2.00x as fast as FP32 at 4 of 6 shapes but slower at 1x256 (0.50x) and 2x256 (0.50x), and "
    )
    uneven = [
        replace(each, median_ms=each.median_ms * (1 + index)) for index, each in enumerate(grid.rows[1].latencies)
    ]
    mixed = verdict(replace(grid, rows=[grid.rows[0], replace(INT8, latencies=uneven)]))
    assert mixed[0].startswith(
        "QAT INT8 is 2.00x as fast as FP32 at 1x128 but about as fast at 2x128 (1.00x) but slower at 4x128 (0.67x) and 8x128"
    )


def on_tensorrt(*rows: Row) -> list[Row]:
    return [row("FP32", "fp32", 0.8676, (1.0, 8.0), tensorrt=True), *rows]


def test_int8_on_a_gpu_is_compared_with_fp16_first(report: Report) -> None:
    half = row("FP16", "fp16", 0.8675, (0.81, 2.6), tensorrt=True)
    lines = verdict(replace(report, rows=on_tensorrt(half, TRT)))
    assert lines == [
        "QAT INT8 is 1.62x as fast as FP16 at 1x128 and 1.30x at 16x128, and gains 0.63 points of pearson (from 86.75 to 87.38)",
        "QAT INT8 is 2.00x as fast as FP32 at 1x128 and 4.00x at 16x128, and gains 0.62 points of pearson (from 86.76 to 87.38)",
        "FP16 is 1.23x as fast as FP32 at 1x128 and 3.08x at 16x128, and loses 0.01 points of pearson (from 86.76 to 86.75)",
    ]
    against = replace(report, rows=on_tensorrt(half, TRT)).to_dict()["rows"][2]["against_fp16"]
    assert (against["baseline"], against["median_latency_ratio"]["16x128"]) == ("FP16", pytest.approx(2.0 / 2.6))
    assert against["score_delta_x100"] == pytest.approx(0.63)


def test_fp16_that_is_missing_on_a_gpu_is_named(report: Report) -> None:
    assert verdict(replace(report, rows=on_tensorrt(TRT)))[-1] == (
        "QAT INT8 was not compared with FP16, its alternative on a GPU; build that engine: python build_engine.py --fp16"
    )
    assert not any("FP16" in line for line in verdict(report))  # on the CPU there is no such opponent


def test_an_fp16_row_on_the_cpu_is_no_measurement_of_fp16(report: Report) -> None:
    widened = replace(report, rows=[FP32, row("FP16", "fp16", 0.87, (5.0, 2000.0)), INT8])
    assert verdict(widened) == verdict(report)  # neither judged nor an opponent
    assert set(widened.ratio(widened.rows[1], FP32).latency.values()) == {None}
    fp16, int8 = widened.to_dict()["rows"][1:]
    assert (fp16["is_widened"], int8["is_widened"], int8["against_fp16"]) == (True, False, None)
    assert (
        "| FP16 | ONNX Runtime, CPU, FP16 as FP32 | fp16 | 87.00 | +0.24 | 21.7 | 25.0 | 5.00 | - | 2000.0 | - |"
        in (markdown(widened))
    )
    mixed = replace(report, rows=[FP32, replace(INT8, precision=Precision.INT8_FP16)])
    assert verdict(mixed)[0].startswith("QAT INT8 is 1.52x as fast as FP32")  # its INT8 products are INT8's


def test_the_linters_reasons_why_int8_is_not_faster(report: Report) -> None:
    def last(findings: tuple[str, ...], medians: tuple[float, ...]) -> str:
        slow = replace(row("QAT INT8", "int8", 0.87, medians, tensorrt=True), findings=findings)
        half = row("FP16", "fp16", 0.8675, (0.81, 2.6), tensorrt=True)
        return verdict(replace(report, rows=on_tensorrt(half, slow)))[-1]

    one, two = (
        ("attention-head-size: head size 48",),
        ("attention-head-size: head size 48", "mixed-types: 3 ops in FP32"),
    )
    why = "The linter's reason why QAT INT8 is not faster everywhere: attention-head-size: head size 48"
    lint = "(q8trt lint runs/x/engine)"
    assert last(one, (0.9, 2.0)) == f"{why} {lint}"
    assert last(two, (0.9, 2.0)) == f"{why}, and 1 other finding {lint}"
    assert last((*two, "c: d"), (0.9, 2.0)) == f"{why}, and 2 other findings {lint}"
    assert last((), (0.9, 2.0)) == f"The linter finds no reason why QAT INT8 is not faster everywhere {lint}"
    assert "linter" not in last(two, (0.5, 2.0))
    slow = replace(report, rows=[FP32, replace(INT8, findings=two)])
    assert not any("linter" in line for line in verdict(slow))  # it judges graphs for TensorRT, not for this CPU


def test_a_hair_faster_is_not_faster(report: Report) -> None:
    close = replace(report, rows=[FP32, row("QAT INT8", "int8", 0.87, (9.9, 1520.0))])
    assert verdict(close)[0].startswith(
        "QAT INT8 is about as fast as FP32 at 1x128 (1.01x) and 16x128 (1.00x), and gains "
    )


def test_a_shape_not_timed_is_not_judged(report: Report) -> None:
    partial = replace(report, rows=[FP32, replace(INT8, latencies=INT8.latencies[:1])])
    assert verdict(partial)[0].startswith("QAT INT8 is slower than FP32 at 1x128 (0.97x), and gains ")
    assert partial.ratio(partial.rows[1], FP32).latency["16x128"] is None


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_number_is_cut(report: Report, width: int) -> None:
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    tokens = set(text.replace(",", " ").split())
    expected = {"86.76", "87.39", "+0.63", "86.8", "21.7", "25.0", "10.00", "10.31", "1520.0", "1000.0", "0.97x"}
    assert {*expected, "1.52x", "1x128", "16x128", "pearson", "x100", "MiB"} <= tokens


@pytest.mark.parametrize("width", [100, 160])
def test_one_line_per_row_names_its_place(report: Report, width: int) -> None:
    lines = [line.partition("ONNX Runtime, CPU ") for line in printed(report, width).splitlines()]
    names = [name.strip() for name, place, _ in lines if place]
    # the summary, the details of two shapes each, the length buckets
    assert names == ["FP32", "QAT INT8", "FP32", "FP32", "QAT INT8", "QAT INT8", "FP32", "QAT INT8"]


@pytest.mark.parametrize("width", [80, 100])
def test_a_gpus_long_name_and_many_shapes_fit(report: Report, width: int) -> None:
    latencies = [summarize(batch, 384, [0.1 * batch]) for batch in (1, 2, 4, 8, 16, 32)]
    wide = replace(
        report, rows=[replace(TRT, precision=Precision.FP32, latencies=latencies), replace(TRT, latencies=latencies)]
    )
    text = printed(wide, width)
    assert max(map(len, text.splitlines())) <= width
    assert {"1x384", "32x384", "3200.0", "100.0"} <= set(text.split())
    assert "H100" in text


def test_sample_is_labeled_everywhere(report: Report) -> None:
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


def test_figures_that_are_not_tensorrts_say_so(report: Report) -> None:
    steady = [replace(row, latencies=[replace(each, warnings=()) for each in row.latencies]) for row in report.rows]
    assert replace(report, rows=steady).all_notes == ["a note of the caller's"]
    assert report.to_dict()["notes"] == report.all_notes
    for text in (unwrapped(printed(report, 80)), markdown(report), report.to_html().replace("&#39;", "'")):
        assert text.count(ON_CPU) == 1
    assert report.to_dict()["verdict"][-1] == ON_CPU
    assert ON_CPU not in verdict(replace(report, rows=[FP32, TRT]))
    gpu = replace(report, rows=[replace(row, device=H100) for row in report.rows])
    assert verdict(gpu)[-1] == "No figure was taken on TensorRT; these are ONNX Runtime's"
    assert verdict(replace(report, rows=[])) == []


def test_to_dict_has_units_in_its_keys(report: Report) -> None:
    data = report.to_dict()
    assert (data["schema"], data["what_is_timed"]) == (2, WHAT_IS_TIMED)
    int8 = data["rows"][1]
    assert int8["latencies"][1]["median_ms"] == pytest.approx(1000.0)
    assert int8["metrics"]["pearson"] == 0.8739
    assert int8["score_x100"] == pytest.approx(87.39)
    assert (int8["onnx_mib"], int8["plan_mib"], int8["lengths"]["ratio"]) == (21.7, 25.04, 3.0)
    assert int8["against"]["baseline"] == "FP32"
    assert int8["against"]["median_latency_ratio"]["16x128"] == pytest.approx(1000 / 1520)


def test_markdown(report: Report) -> None:
    text = markdown(report)
    assert (
        "| QAT INT8 | ONNX Runtime, CPU | int8 | 87.39 | +0.63 | 21.7 | 25.0 | 10.31 | 0.97x | 1000.0 | 1.52x |" in text
    )
    assert "| QAT INT8 | ONNX Runtime, CPU | 87.39 | 86.39 | 87.49 | - |" in text
    # Percentiles of 0.9, 1 and 1.1 s: p90 is 0.8 of the way from the second to the third. 3 queries in 3 s.
    percentiles = "1000.0 | 1000.0 | 1080.0 | 1090.0 | 1098.0"
    assert f"| QAT INT8 | ONNX Runtime, CPU | 16x128 | {percentiles} | 1.00 | 16.0 | 1.52x | 3 |" in text
    assert "## Length buckets 16, 128 against fixed 128 (75% padding), all rows" in text
    assert "| QAT INT8 | ONNX Runtime, CPU | 1500 | 32 | 31.5 | 300 | 100 | 3.00x |" in text
    assert WHAT_IS_TIMED in text
    assert "- command: `python benchmark.py --sample`" in text
    assert "- git_commit: unknown" in text
    assert all(line in text for line in verdict(report))


def test_nothing_scored_or_timed(report: Report) -> None:
    bare = replace(FP32, metrics={}, latencies=[], torch_metrics=None, lengths=None)
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
    assert r"| \[red\]a\|b |" in markdown(odd)


def test_names_in_markdown_are_no_html_and_no_links(report: Report) -> None:
    evil = "<script>x</script>\x1b[2J ![a](http://x)"
    rows = [replace(FP32, name=evil, metrics={evil: 0.5}, torch_metrics={evil: 0.5})]
    odd = replace(report, task=evil, data_source=evil, main_metric=evil, rows=rows, notes=[evil])
    text = markdown(replace(odd, provenance={evil: {evil: [evil]}, "command": f"`{evil}", "platform": evil}))
    command = next(line for line in text.splitlines() if line.startswith("- command"))
    assert command.startswith("- command: `` `<script>")
    text = text.replace(command, "")
    assert "&lt;script&gt;x&lt;/script&gt;" in text
    assert "<script" not in text
    assert "\x1b" not in text
    assert "![a]" not in text


def test_rounding_leaves_no_minus_zero(report: Report) -> None:
    same = replace(report, rows=[FP32, replace(INT8, metrics={"pearson": 0.8676 - 1e-6})])
    assert "-0.00" not in printed(same, 100)
    assert "+0.00" in printed(same, 100)


def test_write_report(report: Report, tmp_path: Path) -> None:
    paths = write_report(tmp_path / "out", report)
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.md", "benchmark.html"]
    assert json.loads(paths[0].read_text(encoding="utf-8")) == json.loads(json.dumps(report.to_dict()))
    assert paths[1].read_text(encoding="utf-8") == markdown(report)
    assert paths[2].read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path.stem for path in write_report(tmp_path / "other", report, name="sts-b")} == {"sts-b"}


def test_write_report_refuses_nan_and_leaves_nothing(report: Report, tmp_path: Path) -> None:
    bad = replace(report, rows=[replace(FP32, metrics={"pearson": float("nan")})])
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []


def test_length_buckets_are_on_the_terminal(report: Report) -> None:
    text = unwrapped(printed(report, 100))
    assert "Length buckets 16, 128 against fixed 128 (75% padding), all rows" in text
    assert "QAT INT8 ONNX Runtime, CPU 1500 32 31.5 300 100 3.00x" in text
    silent = replace(report, rows=[replace(row, lengths=None) for row in report.rows])
    assert "buckets" not in printed(silent, 100)
    some = replace(report, rows=[replace(INT8, lengths=replace(INT8.lengths, rows=300))])
    assert "fixed 128 (75% padding), 300 of 1500 rows, in evenly spaced batches, to keep to --max_seconds" in unwrapped(
        printed(some, 100)
    )


@pytest.fixture
def on_gpu(report: Report) -> Report:
    """A row with device timings on an H100 and its share of peak, beside the CPU's."""
    parts = {
        name: [ms] * 3 for name, ms in (("h2d", 0.02), ("gpu", 0.5), ("d2h", 0.01), ("enqueue", 0.45), ("host", 0.6))
    }
    latency = replace(
        summarize(16, 128, [0.0006] * 3, parts), cuda_graph=False, transfers=True, gemm_tops=712.44, peak_share=0.36
    )
    state = GpuState(H100, "570.1", 1755.0, 1980.0, 2300.0, None, 410.0)
    return replace(report, rows=[FP32, INT8, replace(TRT, latencies=[latency])], gpus=[state])


def test_device_timings_say_what_was_on(on_gpu: Report) -> None:
    line = f"| QAT INT8 | TensorRT, {H100} | 16x128 | 0.020 | 0.500 | 0.010 | 0.450 | 0.600 | off | on |"
    assert line in markdown(on_gpu)
    assert markdown(on_gpu).count("| off | on |") == 1  # the CPU's rows have no such parts
    assert "0.020 0.500 0.010 0.450" in unwrapped(printed(on_gpu, 100))
    assert f"| QAT INT8 | TensorRT, {H100} | 16x128 | 0.53 |" in markdown(on_gpu)
    assert "| 712.4 | 36% |" in markdown(on_gpu)
    assert on_gpu.what_is_timed == f"{WHAT_IS_TIMED_ON_DEVICES}; for rows without device timings, {WHAT_IS_TIMED}"


def test_doubtful_times_peaks_and_the_gpus_state_are_told(on_gpu: Report) -> None:
    where = f"QAT INT8 on TensorRT, {H100}: enqueue-bound at 16x128: launching takes about as long as computing"
    assert any(note.startswith(where) for note in on_gpu.all_notes)
    assert any(f"dense tensor-core peak of the {H100} by NVIDIA H100" in note for note in on_gpu.all_notes)
    state = f"{H100} right after timing: driver 570.1, SM clock 1755 of 1980 MHz, memory used 2300 MiB (all processes)"
    assert state in unwrapped(printed(on_gpu, 160))
    assert state in markdown(on_gpu)
    uneven = [summarize(batch, 128, [0.009, 0.01, 0.013]) for batch in (1, 16)]  # a p95 of 1.27 medians
    shaken = replace(on_gpu, rows=[replace(FP32, latencies=uneven), *on_gpu.rows[1:]])
    note = "FP32 on ONNX Runtime, CPU: unstable at every shape: at 1x128, p95 is 1.27 times the median"
    assert note in shaken.all_notes


def test_many_shapes_leave_the_summary(report: Report) -> None:
    latencies = [summarize(batch, 128, [0.1 * batch]) for batch in (1, 2, 4, 8, 16)]
    many = replace(report, rows=[replace(FP32, latencies=latencies)])
    assert "16x128 ms" not in markdown(many)
    assert "| FP32 | ONNX Runtime, CPU | 16x128 | 1600.0 |" in markdown(many)


def keys(value: object) -> set[str]:
    """Every key of nested JSON, but those that are names of things: metrics, shapes, versions."""
    if isinstance(value, list):
        return {key for each in value for key in keys(each)}
    if not isinstance(value, dict):
        return set()
    named = {"metrics", "torch_metrics", "fp32_metrics", "median_latency_ratio", "provenance"}
    inner = [keys(each) for key, each in value.items() if key not in named]
    return set(value).union(*inner)


def test_every_key_is_documented(on_gpu: Report) -> None:
    from q8trt.hardware.provenance import provenance
    from q8trt.reporting.comparison import side_by_side
    from q8trt.reporting.stored import stored_report

    text = (Path(__file__).parents[1] / "docs" / "reference" / "benchmark-schema.md").read_text(encoding="utf-8")
    times = LayerTimes(1, 128, 10, (LayerTime("gemm", 1.0),))
    measured = {"parity": Parity(0.1, 0.01, 4.0), "fp32_metrics": {"pearson": 0.87}, "layer_times": times}
    rows = [replace(row, **measured) for row in on_gpu.rows]
    data = replace(on_gpu, rows=rows).to_dict(Gate(1.0, 1.0))
    stored = stored_report(json.loads(json.dumps(data)), "benchmark.json")
    origin = provenance(["benchmark.py"])
    origin.pop("versions")
    used = keys(data) | keys(origin) | keys(side_by_side(stored, stored).to_dict())
    assert used - {word for word in used if f"`{word}`" in text} == set()
    assert "h2d" in used  # the parts of a query were among them


def test_parity_is_told_in_notes_and_json(report: Report) -> None:
    rows = [FP32, replace(INT8, parity=Parity(0.125, 0.008, 4.75))]
    told = replace(report, rows=rows)
    note = (
        "logits of ONNX Runtime, CPU differ from the torch model's by at most 0.12, 0.008 on average (logits reach 4.8)"
    )
    assert f"Note: QAT INT8: {note}" in markdown(told)
    assert told.to_dict()["rows"][1]["parity"]["largest_logit_difference"] == 0.125
    assert not any("logits" in remark for remark in report.all_notes)


def test_torchs_score_stands_beside_the_engines(report: Report) -> None:
    rows = [replace(row, fp32_metrics={"pearson": 0.8676}) for row in report.rows]
    told = replace(report, rows=rows)
    line = "torch FP32 scored pearson x100 86.76 on the run's development set, as recorded there"
    assert markdown(told).count(line) == told.to_html().count(line.replace("'", "&#39;")) == 1
    assert line in unwrapped(printed(told, 120))
    assert not any("torch FP32" in note for note in report.all_notes)
    timed = replace(told, rows=[replace(row, metrics={}) for row in rows])
    assert not any("torch FP32" in note for note in timed.all_notes)


def test_a_report_without_scores_is_called_timing_only(report: Report) -> None:
    assert replace(report, rows_evaluated=0, split="-").title == "STS-B, timing only"


def test_a_ratio_of_unstable_times_is_no_plain_success(report: Report) -> None:
    fast, slow = row("QAT INT8", "int8", 0.87, (5.0, 760.0)), FP32
    shaken = [
        replace(each, warnings=(TimingWarning("unstable", "p95 is 1.85 times the median"),)) for each in slow.latencies
    ]
    (sentence, *_) = verdict_phrases(
        replace(report, rows=[replace(slow, latencies=[shaken[0], slow.latencies[1]]), fast])
    )
    assert sentence.text.endswith("; these ratios are doubtful: unstable times of FP32 at 1x128")
    assert sentence.tone == "warning"
    both = [replace(slow, latencies=shaken), replace(fast, latencies=[shaken[0], fast.latencies[1]])]
    assert verdict(replace(report, rows=both))[0].endswith(
        ": unstable times of FP32 at every shape and QAT INT8 at 1x128"
    )
    bound = replace(
        fast, latencies=[replace(each, warnings=(TimingWarning("enqueue-bound", "."),)) for each in fast.latencies]
    )
    assert verdict_phrases(replace(report, rows=[slow, bound]))[0].tone == "good"


def test_sums_of_figures_add_up(report: Report) -> None:
    """The scores differ by 0.1396 points, but a reader subtracts 90.87 from 91.00."""
    near = replace(
        report, rows=[replace(FP32, metrics={"pearson": 0.910049}), replace(INT8, metrics={"pearson": 0.908653})]
    )
    assert ", and loses 0.13 points of pearson (from 91.00 to 90.87)" in verdict(near)[0]
    assert "| -0.13 |" in near.to_markdown()
    (failure,) = Gate(max_drop=0.1).failures(near)
    assert "loses 0.13 points of pearson against the FP32 engine (90.87 of 91.00)" in failure


def test_the_reason_of_a_missing_figure_fits_its_column(report: Report) -> None:
    reasons = {column.title: column.missing for column in summary(report).columns}
    assert reasons["vs FP32"] == "not scored, or no scored FP32 row on the same backend and device"
    assert reasons[f"{report.shapes[0]} speed"].startswith(
        "not timed, no FP32 row timed on the same backend and device"
    )
