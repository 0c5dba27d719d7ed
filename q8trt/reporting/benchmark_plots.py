"""Plots of a benchmark. A plot shows one backend on one device, so figures of different places never share axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from q8trt.engine.manifest import SAMPLE_LABEL
from q8trt.reporting.charts import Bar, BarChart, LineChart, Point, Series
from q8trt.reporting.formats import ms, percent, rate, times
from q8trt.reporting.html import Figure
from q8trt.reporting.measurements import Measurements, Row
from q8trt.reporting.scores import axis_unit, on_axis, score_text
from q8trt.runtime.timing.latency import Latency
from q8trt.runtime.timing.layers import LayerTimes, by_kind
from q8trt.tasks.metrics import direction

#: Bars of a plot of layers; all other kinds share one more bar.
_LAYERS = 9
#: Rows of one place with their numbers, which choose color and marker.
Rows = Sequence[tuple[int, Row]]


@dataclass(frozen=True)
class PlacePlots:
    """The plots of one backend and device, and a sentence for each that cannot be drawn."""

    name: str
    figures: list[Figure]
    not_drawn: list[str]


def plots(report: Measurements, place: str) -> PlacePlots:
    """Return the plots of the rows of one place, without rows that repeat FP32. A line plot has at least two points."""
    rows = [each for each in enumerate(row for row in report.rows if row.place == place) if not each[1].repeats_fp32]
    shapes = {(latency.batch, latency.sequence) for _, row in rows for latency in row.latencies}
    batches, sequences = sorted({batch for batch, _ in shapes}), sorted({sequence for _, sequence in shapes})
    figures: list[Figure] = []
    not_drawn = []
    if len(batches) > 1:
        charts = {f"{length} tokens": _over_batches(rows, length, _median) for length in sequences}
        figures += _family("Median latency against batch", charts, place, ("batch", "ms; whiskers to p95"))
    else:
        not_drawn.append("Latency against batch: needs two batch sizes, see --batch_sizes.")
    if len(sequences) > 1:
        charts = {f"batch {batch}": _over_sequences(rows, batch, _throughput) for batch in batches}
        figures += _family("Throughput against sequence", charts, place, ("tokens a row", "samples/s"))
    else:
        not_drawn.append("Throughput against sequence: needs two lengths, see --seq_lengths.")
    figures += _accuracy(report, rows, place)
    charts = {f"{length} tokens": _over_batches(rows, length, _share) for length in sequences}
    if any(charts.values()):  # one batch size makes no figure, which `not_drawn` already says
        labels = "batch", "% of the peak at the precision of the row"
        figures += _family("Share of the GPU's peak against batch", charts, place, labels, whole=100.0)
    elif any(row.device != "cpu" for _, row in rows):
        not_drawn.append(f"Share of peak: no peak is known for {rows[0][1].device_label} at these precisions.")
    figures += _buckets(rows, place)
    layers = _layers(rows, place)
    return PlacePlots(place, figures + layers, not_drawn if layers else [*not_drawn, "Time by layer: not profiled."])


#: A value, the end of its whisker (None for no whisker), and both as text.
Reading = tuple[float, float | None, str]


def _median(latency: Latency) -> Reading | None:
    return latency.median_ms, latency.p95_ms, f"{ms(latency.median_ms)} ms, p95 {ms(latency.p95_ms)} ms"


def _throughput(latency: Latency) -> Reading | None:
    return latency.samples_per_s, None, f"{rate(latency.samples_per_s)} samples/s"


def _share(latency: Latency) -> Reading | None:
    share = latency.peak_share
    return None if share is None else (100 * share, None, percent(share))


def _over_batches(rows: Rows, sequence: int, read: Callable[[Latency], Reading | None]) -> list[Series]:
    return _curves(rows, lambda each: each.batch if each.sequence == sequence else None, read)


def _over_sequences(rows: Rows, batch: int, read: Callable[[Latency], Reading | None]) -> list[Series]:
    return _curves(rows, lambda each: each.sequence if each.batch == batch else None, read)


def _curves(
    rows: Rows, x_of: Callable[[Latency], int | None], read: Callable[[Latency], Reading | None]
) -> list[Series]:
    """Return a series for each row that has a point. Latencies without an x or a reading have no point."""
    series = []
    for index, row in rows:
        points = [
            Point(x, reading[0], f"{row.name}, {each.shape}: {reading[2]}", reading[1])
            for each in row.latencies
            if (x := x_of(each)) is not None and (reading := read(each))
        ]
        if points:
            series.append(Series(row.name, index, tuple(sorted(points, key=lambda point: point.x))))
    return series


def _legend(series: Sequence[Series]) -> tuple[tuple[int, str], ...]:
    return tuple((each.index, each.name) for each in series)


def _family(
    title: str, charts: Mapping[str, list[Series]], place: str, labels: tuple[str, str], whole: float | None = None
) -> list[Figure]:
    """Return a figure for each chart with two values of x or more, all on the same axes, so that they can be compared.

    With `whole`, the vertical axis is linear and reaches from 0 to at least `whole`.
    """
    points = [point for series in charts.values() for each in series for point in each.points]
    x = tuple(point.x for point in points)
    y = tuple(value for point in points for value in (point.y, point.high) if value is not None)
    y = y if whole is None else (0.0, whole, *y)
    return [
        Figure(f"{title}, {at}", place, LineChart(tuple(series), labels, x, y), _legend(series))
        for at, series in charts.items()
        if len({point.x for each in series for point in each.points}) > 1
    ]


def _accuracy(report: Measurements, rows: Rows, place: str) -> list[Figure]:
    metric, shape, series = report.main_metric, report.largest_shape, []
    for index, row in rows:
        score, median = row.metrics.get(metric), row.median_ms(shape)
        if score is not None and median is not None:
            text = f"{row.name}: {score_text(metric, score)}, {ms(median)} ms"
            series.append(Series(row.name, index, (Point(median, on_axis(metric, score), text),)))
    if len(series) < 2:
        return []
    torch = next((score for _, row in rows if (score := report.torch_fp32_x100(row)) is not None), None)
    torch = None if report.is_drift else torch
    points = [each.points[0] for each in series]
    label = f"{metric} {axis_unit(metric)}".rstrip() + (f", {SAMPLE_LABEL}" if report.is_sample else "")
    chart = LineChart(
        tuple(series),
        ("median ms; left is faster", label),
        x_values=(0.0, *(point.x for point in points)),
        y_values=(*(point.y for point in points), *([] if torch is None else [torch])),
        x_is_choice=False,
        y_from_zero=False,
        joined=False,
        reference=torch,
        y_most=on_axis(metric, 1.0) if direction(metric) > 0 else math.inf,
    )
    title, reference = f"Accuracy against latency, {shape}", "" if torch is None else "torch FP32, recorded in the run"
    return [Figure(title, place, chart, _legend(series), reference)]


def _buckets(rows: Rows, place: str) -> list[Figure]:
    bars = []
    for index, row in rows:
        if row.lengths:
            bucketed, fixed = row.lengths.bucket_samples_per_s, row.lengths.fixed_samples_per_s
            text = f"{rate(bucketed)} ({times(row.lengths.ratio)} fixed length)"
            bars.append(Bar(f"{row.name}, length buckets", bucketed, index, text))
            bars.append(Bar(f"{row.name}, fixed {row.lengths.fixed}", fixed, index, rate(fixed)))
    return [Figure("Throughput of the development set", place, BarChart(tuple(bars), "samples/s"))] if bars else []


def _layers(rows: Rows, place: str) -> list[Figure]:
    """Return a figure of the time by kind of layer for each profiled row, all on one scale."""
    profiled = [(row, row.layer_times, _layer_bars(index, row.layer_times)) for index, row in rows if row.layer_times]
    limit = max((bar.value for _, _, bars in profiled for bar in bars), default=0.0)
    return [
        Figure(
            f"Time by layer, {row.name}, {measured.batch}x{measured.sequence}",
            place,
            BarChart(bars, f"ms, median of {measured.iterations} batches, by the backend's profiler", limit),
        )
        for row, measured, bars in profiled
    ]


def _layer_bars(index: int, measured: LayerTimes) -> tuple[Bar, ...]:
    """Return a bar for each of the slowest kinds of layer, and one bar for all others."""
    kinds = by_kind(measured)
    rest = kinds[_LAYERS:]
    if rest:
        kinds[_LAYERS:] = [("all others", sum(time for _, time, _ in rest), sum(count for _, _, count in rest))]
    total = measured.total_ms or 1
    return tuple(
        Bar(name if count == 1 else f"{name} ({count})", time, index, f"{ms(time)} ms, {percent(time / total)}")
        for name, time, count in kinds
    )
