"""The HTML page: whole, self-contained, and no figure under another place's name."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from q8trt.quantization.precision import Precision
from q8trt.reporting import Report, Row
from q8trt.reporting.benchmark_plots import plots
from q8trt.reporting.charts import Bar, BarChart, LineChart, Point, Series, bar_figure, line_figure, svg, tick_labels
from q8trt.runtime.timing.latency import summarize
from q8trt.runtime.timing.layers import LayerTime, LayerTimes, by_kind
from q8trt.runtime.timing.lengths import Lengths

H100 = "NVIDIA H100 80GB HBM3"
VOID = {"meta", "br", "path", "line", "use", "g", "defs"}


class Page(HTMLParser):
    """Checks that tags nest, and collects each figure's caption, legend and tooltips."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures: list[dict[str, list[str]]] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag == "figure":
            self.figures.append({"figcaption": [], "title": [], "span": []})
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "figure" in self.open:
            for tag, texts in self.figures[-1].items():
                if tag in self.open:
                    texts.append(data)


def row(name: str, precision: str, factor: float, tensorrt: bool = False, share: float | None = None) -> Row:
    place = f"TensorRT, {H100}" if tensorrt else "ONNX Runtime, CPU"
    latencies = [
        replace(summarize(batch, length, [factor * batch * length / 1e5] * 3), peak_share=share)
        for length in (32, 128)
        for batch in (1, 8)
    ]
    return Row(
        name, place, "tensorrt" if tensorrt else "onnxruntime", H100 if tensorrt else "cpu",
        Precision(precision),
        {"pearson": 0.86 + factor / 100}, 86.8, 91.0, latencies, fp32_metrics={"pearson": 0.868},
        lengths=Lengths(1500, 32, (16, 128), 128, 31.5, 300 / factor, 100 / factor),
    )  # fmt: skip


def html(report: Report) -> str:
    return report.to_html()


@pytest.fixture
def report() -> Report:
    rows = [
        row("FP32", "fp32", 1.0),
        row("QAT INT8", "int8", 0.5),
        row("FP32", "fp32", 0.1, True),
        row("FAST INT8", "int8", 0.01, True, 0.54),
    ]
    provenance = {"command": "python benchmark.py", "date_utc": "2026-01-01", "hardware": {"cpu": "a CPU", "gpus": []}}
    return Report("STS-B", "dev", "GLUE <folder>", False, 1500, "01", "pearson", rows, provenance)


def test_the_page_is_whole_and_needs_no_network(report: Report) -> None:
    text = html(report)
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert not re.search(r"https?:|url\(|@import|<script", text)
    assert "prefers-color-scheme: dark" in text
    assert "GLUE &lt;folder&gt;" in text


def test_every_plot_has_one_place_and_its_own_rows_only(report: Report) -> None:
    figures = Page(html(report)).figures
    for figure in figures:
        _, place = figure["figcaption"]
        assert place in ("ONNX Runtime, CPU", f"TensorRT, {H100}")
        other = "FAST" if place.endswith("CPU") else "QAT"
        assert not any(other in text for text in (*figure["title"], *figure["span"]))
    titles = [figure["figcaption"][0] for figure in figures if figure["figcaption"][1].startswith("TensorRT")]
    assert titles == [
        "Median latency against batch, 32 tokens",
        "Median latency against batch, 128 tokens",
        "Throughput against sequence, batch 1",
        "Throughput against sequence, batch 8",
        "Accuracy against latency, 8x128",
        "Share of the GPU's peak against batch, 32 tokens",
        "Share of the GPU's peak against batch, 128 tokens",
        "Throughput of the development set",
    ]


def test_marks_carry_the_figures(report: Report) -> None:
    figures = {tuple(figure["figcaption"]): figure["title"] for figure in Page(html(report)).figures}
    cpu = "ONNX Runtime, CPU"
    latency = figures["Median latency against batch, 128 tokens", cpu]
    assert "QAT INT8, 8x128: 5.12 ms, p95 5.12 ms" in latency
    assert len(latency) == 4
    assert "FP32, 8x32: 391 samples/s".replace("391", "3125") in figures["Throughput against sequence, batch 8", cpu]
    assert figures["Accuracy against latency, 8x128", cpu] == ["FP32: 87.00, 10.24 ms", "QAT INT8: 86.50, 5.12 ms"]
    assert "FAST INT8, 1x32: 54%" in figures["Share of the GPU's peak against batch, 32 tokens", f"TensorRT, {H100}"]
    assert "QAT INT8, length buckets: 600 (3.00x fixed length)" in figures["Throughput of the development set", cpu]


def test_time_by_layer_is_summed_over_the_encoders_layers(report: Report) -> None:
    names = [f"bert.encoder.layer.{layer}.{name}" for layer in range(3) for name in ("query", "key")]
    layers = (
        *(LayerTime(name, 2.0 if name.endswith("query") else 1.0) for name in names),
        LayerTime("pooler", 0.5),
        *(LayerTime(f"{letter * 80}.end", 0.01) for letter in "abcdefgh"),
    )
    times = LayerTimes(8, 128, 10, layers)
    assert by_kind(times)[:3] == [
        ("bert.encoder.layer.*.query", 6.0, 3), ("bert.encoder.layer.*.key", 3.0, 3), ("pooler", 0.5, 1)
    ]  # fmt: skip
    assert times.total_ms == pytest.approx(9.58)
    rows = [
        replace(report.rows[0], layer_times=replace(times, layers=layers[:2])),
        replace(report.rows[1], layer_times=times),
    ]
    text = html(replace(report, rows=rows))
    figures = {figure["figcaption"][0]: figure for figure in Page(text).figures}
    assert {"Time by layer, FP32, 8x128", "Time by layer, QAT INT8, 8x128"} <= set(figures)
    tips = figures["Time by layer, QAT INT8, 8x128"]["title"]
    assert len(tips) == 10
    assert tips[0] == "bert.encoder.layer.*.query (3): 6.00 ms, 63%"
    assert tips[-1] == "all others (2): 0.02 ms, 0%"
    assert f"{'a' * 30}…{'a' * 27}.end</text>" in text  # cut in the middle; the tooltip has all of it
    # On one scale: FP32's 2 ms are a third of INT8's 6 ms.
    (fp32, *_), (int8, *_) = (
        [float(right) - 4 for right in re.findall(r"M 4 [\d.]+ +L ([\d.]+) ", part)]
        for part in text.split("<figcaption><b>Time by layer")[1:]
    )
    assert fp32 / int8 == pytest.approx(1 / 3, rel=0.02)


def test_a_share_is_shown_of_the_whole(report: Report) -> None:
    page = html(report)
    drawing = page[page.index("<figcaption><b>Share of the GPU") :].partition("</figure>")[0]
    assert all(f">{tick}</text>" in drawing for tick in (0, 20, 40, 60, 80, 100))
    assert "logarithmic" not in drawing


def test_accuracy_stands_against_the_largest_shape(report: Report) -> None:
    backwards = [replace(row, latencies=row.latencies[::-1]) for row in report.rows]
    assert replace(report, rows=backwards).largest_shape == report.largest_shape == "8x128"
    assert replace(report, rows=[]).largest_shape == ""


def test_what_cannot_be_drawn_is_said(report: Report) -> None:
    text = html(report)
    assert "Share of peak" in text  # of the GPU's rows; a CPU's is not even missed
    assert "no peak is known for CPU" not in text
    unknown = [
        replace(row, latencies=[replace(each, peak_share=None) for each in row.latencies]) for row in report.rows
    ]
    assert f"Share of peak: no peak is known for {H100} at these precisions." in html(replace(report, rows=unknown))
    assert text.count("Time by layer: not profiled.") == 2
    one = [replace(row, latencies=row.latencies[:1], lengths=None, metrics={}) for row in report.rows[:2]]
    bare = html(replace(report, rows=one, rows_evaluated=0))
    assert "Latency against batch: needs two batch sizes" in bare
    assert "Throughput against sequence: needs two lengths" in bare
    assert Page(bare).figures == []
    assert Page(html(replace(report, rows=[]))).open == []


def test_one_point_is_not_plotted(report: Report) -> None:
    """A grid with a hole: batch 8 was timed at 32 tokens alone, so 128 tokens have one point; and one row has one score."""
    rows = [replace(row, latencies=row.latencies[:3], lengths=None) for row in report.rows[2:]]
    titles = [figure["figcaption"][0] for figure in Page(html(replace(report, rows=rows))).figures]
    assert titles == [
        "Median latency against batch, 32 tokens",
        "Throughput against sequence, batch 1",
        "Accuracy against latency, 8x32",
        "Share of the GPU's peak against batch, 32 tokens",
    ]
    alone = [figure["figcaption"][0] for figure in Page(html(replace(report, rows=rows[1:]))).figures]
    assert alone == [title for title in titles if not title.startswith("Accuracy")]


def test_a_cpu_has_no_tops(report: Report) -> None:
    rows = [replace(row, latencies=[replace(each, gemm_tops=0.123) for each in row.latencies]) for row in report.rows]
    page = html(replace(report, rows=rows[:2]))
    assert "TOPS" not in page
    assert "of peak" not in page
    mixed = html(replace(report, rows=rows))
    table = mixed[mixed.index("<h2>Latency and throughput</h2>") :]
    assert table.count(">0.123</td>") == 8  # of the two rows on the GPU


def test_fp16_that_was_computed_in_fp32_is_in_no_plot(report: Report) -> None:
    page = Page(html(replace(report, rows=[*report.rows[:2], row("FP16", "fp16", 1.0)])))
    assert page.figures
    assert not any("FP16" in text for figure in page.figures for text in (*figure["title"], *figure["span"]))


def test_the_built_in_sample_and_the_cpu_are_named(report: Report) -> None:
    sample = html(replace(report, rows=report.rows[:2], is_sample=True))
    assert sample.count("built-in sample, not GLUE") >= 3
    assert sample.count("These are ONNX Runtime&#39;s figures on the CPU; they do not forecast a GPU&#39;s") == 1


def line_axes(values: list[float], x_values: tuple[float, ...] = (1, 64), **options: Any) -> Any:
    points = tuple(Point(x_values[0], value, "tip") for value in values)
    chart = LineChart((Series("A", 0, points),), ("x", "y"), x_values, tuple(values), **options)
    figure, _ = line_figure(chart)
    return figure.axes[0]


def test_axes() -> None:
    assert list(line_axes([3.0, 19.0]).get_yticks()) == [0, 5, 10, 15, 20]
    assert line_axes([86.6, 86.9], y_from_zero=False).get_ylim()[0] <= 86.25
    low, high = line_axes([1.0, 0.9876], y_from_zero=False).get_ylim()  # cosines
    assert 0.97 < low < high < 1.02
    wide = line_axes([2.5, 310.0])
    assert wide.get_yscale() == "log"
    assert list(wide.get_yticks()) == [5, 10, 20, 50, 100, 200]
    batches = line_axes([1.0], (8, 1, 8, 64))
    assert batches.get_xscale() == "log"
    assert list(batches.get_xticks()) == [1, 8, 64]
    assert [label.get_text() for label in batches.get_xticklabels()] == ["1", "8", "64"]
    low, high = line_axes([1.0], (16,)).get_xlim()
    assert low * high == pytest.approx(16**2)


@pytest.mark.parametrize("values", [[0.004, 0.005], [1.0], [7.0, 8000.0], [99.0, 101.0], [0.3, 0.0], [12345.0]])
def test_every_value_lies_on_its_axis(values: list[float]) -> None:
    for from_zero in (True, False):
        axes = line_axes(values, y_from_zero=from_zero)
        low, high = axes.get_ylim()
        assert all(low <= value <= high for value in values)
        assert 2 <= len(axes.get_yticks()) <= 9


@pytest.mark.parametrize("values", [[99.1, 100.0], [100.0], [63.2, 99.9]])
def test_an_axis_of_percent_ends_at_100(values: list[float]) -> None:
    axes = line_axes(values, y_from_zero=False, y_most=100.0)
    assert axes.get_ylim()[1] == max(axes.get_yticks()) == 100
    assert axes.get_ylim()[0] < min(values)


def test_only_a_distance_may_exceed_one(report: Report) -> None:
    for metric, most in {"agreement": 100.0, "pearson": 100.0, "cosine_mean": 1.0, "logit_worst": math.inf}.items():
        rows = [replace(each, metrics={metric: 0.99}) for each in report.rows]
        (place, *_) = [plots(replace(report, main_metric=metric, rows=rows), each) for each in report.places]
        (chart,) = [each.chart for each in place.figures if each.title.startswith("Accuracy against")]
        assert isinstance(chart, LineChart)
        assert chart.y_most == most


def test_tick_labels_agree_in_decimals() -> None:
    assert tick_labels((86.5, 87.0)) == ["86.5", "87.0"]
    assert tick_labels((0.0, 20_000.0)) == ["0k", "20k"]
    assert tick_labels((0.5, 1.0, 20.0), is_log=True) == ["0.5", "1", "20"]


def test_points_lie_where_the_axes_say() -> None:
    series = Series("A & B", 1, (Point(1, 10, "low"), Point(64, 20, "<high>")))
    drawn = svg(LineChart((series,), ("x", "y"), (1, 64), (10, 20)), 'a "title"')
    (left, lower), (right, upper) = [
        (float(x), float(y)) for x, y in re.findall(r'<use x="([\d.]+)" y="([\d.]+)"', drawn)
    ]
    assert left < right
    assert lower > upper  # y grows downwards
    assert "<title>&lt;high&gt;</title>" in drawn
    assert 'aria-label="a &quot;title&quot;"' in drawn
    shown, tips = bar_figure(BarChart((Bar("all", 100.0, 0, "100"), Bar("half", 50.0, 1, "50")), "unit"))
    whole, half = [bar.get_width() for bar in shown.axes[0].patches]
    assert whole == pytest.approx(2 * half)
    assert tips == ["all: 100", "half: 50"]


def test_colors_are_variables_of_the_stylesheet(report: Report) -> None:
    text = html(report)
    drawings = re.findall(r"<svg class=\"chart\".*?</svg>", text, flags=re.DOTALL)
    assert drawings
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}|black", drawing)
        for variable in re.findall(r"var\((--\w+)\)", drawing):
            assert text.count(f"{variable}:") == 2  # light and dark
