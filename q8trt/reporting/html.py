"""A report as one self-contained page: plots to look at, tables to read. No script, no network, light and dark.

A plot shows one backend on one device and says which: figures of different places never share axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from q8trt.engine.manifest import SAMPLE_LABEL
from q8trt.reporting.cells import (
    DETAILS,
    DEVICE_PARTS,
    LENGTHS,
    LENGTHS_LEGEND,
    SPEEDUP_LEGEND,
    SUMMARY_SHAPES,
    detail_cells,
    gpu_line,
    length_cells,
    lengths_title,
    ms,
    part_cells,
    percent,
    rate,
    score_cells,
    time_cells,
)
from q8trt.reporting.page_style import STYLE
from q8trt.reporting.report import Report, Row
from q8trt.reporting.svg import Point, Series, bars, chart, choice_axis, dashed_swatch, swatch, value_axis
from q8trt.reporting.verdict import verdict
from q8trt.runtime.timing.layers import LayerTimes, by_kind
from q8trt.runtime.timing.timing import Latency


def html(report: Report) -> str:
    """The page, a whole HTML document."""
    data = {"data": report.data_label, "data_fingerprint": report.data_fingerprint}
    return page(report.title, [*content(report), provenance_section({**data, **report.provenance})])


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML document of sections; `title` is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def content(report: Report) -> list[str]:
    """The sections of one report, provenance apart."""
    body = [_head(report), section("Verdict", _verdict(report))]
    for place in report.places:
        body.append(section(place, "".join(_plots(report, place))))
    notes = [*(note for note in report.all_notes if note != report.place_note), *map(gpu_line, report.gpus)]
    if notes:
        body.append(section("Notes", f"<ul class='notes'>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"))
    return [*body, *(section(title, text) for title, text in _tables(report) if text)]


def section(title: str, content: str) -> str:
    """A titled section; `title` is text, `content` HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _head(report: Report) -> str:
    places = "".join(f'<li class="place">{escape(place)}</li>' for place in report.places)
    origin = report.provenance
    hardware = origin.get("hardware", {})
    machine = ", ".join(hardware.get("gpus") or [f"{hardware.get('cpu', 'CPU')}, {hardware.get('cores', '?')} cores"])
    return (
        f"<header><h1>{escape(report.title)}</h1>\n<ul class='places'>{places}</ul>\n"
        f"<p class='faint'>{escape(machine)} · {escape(str(origin.get('date_utc', '')))}</p>"
        f"<p>{escape(report.place_note)}</p></header>"
    )


def _verdict(report: Report) -> str:
    def kind(line: str) -> str:
        return "slower" if " NOT faster " in line else "faster" if " is faster " in line else "plain"

    lines = [f'<li class="{kind(line)}">{escape(line)}</li>' for line in verdict(report)]
    return f"<ul class='verdict'>{''.join(lines)}</ul>{_summary(report)}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int, trailing: int = 0) -> str:
    """A table that scrolls sideways in a narrow window; the first column, whose row it is, stays.

    The first `words` and the last `trailing` columns hold words, the others figures. A cell that says no more than "passed"
    or "failed" has their colour.
    """

    def kind(index: int, text: str) -> str:
        if text in ("passed", "failed"):
            return f" class={text}"
        return "" if index < words or index >= len(headers) - trailing else " class=number"

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(f"<{tag}{kind(index, text)}>{escape(text)}</{tag}>" for index, text in enumerate(texts))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f"<div class='scroll'><table><thead><tr>{cells('th', headers)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _summary(report: Report) -> str:
    if not report.rows:
        return ""
    columns = [" ".join(column) for column in score_cells(report, report.rows[0])]
    if report.is_sample:
        columns[0] += f" ({SAMPLE_LABEL})"
    shapes = report.shapes if len(report.shapes) <= SUMMARY_SHAPES else []
    headers = ["", "runs on", *columns, *(f"{shape} {unit}" for shape in shapes for unit in ("ms", "speed"))]
    rows = [
        [row.name, row.place, *score_cells(report, row).values()]
        + [cell for shape in shapes for cell in time_cells(report, row, shape)]
        for row in report.rows
    ]
    legend = f"<p class='faint'>{escape(SPEEDUP_LEGEND)}</p>" if shapes else ""
    return table(headers, rows, 2) + legend


def _tables(report: Report) -> Iterator[tuple[str, str]]:
    """Percentiles and throughput, parts of a query, length buckets."""

    def named(columns: Sequence[tuple[str, str]], rows: list[list[str]]) -> str:
        headers = ["", "runs on", *(" ".join(column).strip() for column in columns)]
        return table(headers, rows, 2) if rows else ""

    def each(cells: Callable[[Row, Latency], list[str]], only_parts: bool = False) -> list[list[str]]:
        return [
            [row.name, row.place, *cells(row, latency)]
            for row in report.rows
            for latency in row.latencies
            if latency.parts or not only_parts
        ]

    details = named(DETAILS, each(lambda row, latency: detail_cells(report, row, latency)))
    timed = f"<p class='faint'>Timed is the {escape(report.what_is_timed)}. {escape(SPEEDUP_LEGEND)}.</p>"
    yield "Latency and throughput", details + timed if details else ""
    yield "Parts of a query, medians", named(DEVICE_PARTS, each(lambda row, latency: part_cells(latency), True))
    lengths = named(LENGTHS, [[row.name, row.place, *length_cells(row)] for row in report.rows if row.lengths])
    yield lengths_title(report), f"{lengths}<p class='faint'>{escape(LENGTHS_LEGEND)}</p>" if lengths else ""


def figure(title: str, place: str, drawing: str, names: Sequence[tuple[int, str]] = (), dashed: str = "") -> str:
    """A drawing under its title and the place of its figures; `names` are the series of the legend, `dashed` its reference."""
    legend = "".join(f"<span>{swatch(index)}{escape(name)}</span>" for index, name in names)
    legend += f"<span>{dashed_swatch()}{escape(dashed)}</span>" if dashed else ""
    caption = f"<figcaption><b>{escape(title)}</b><span class='faint'>{escape(place)}</span></figcaption>"
    legend = f"<div class='legend'>{legend}</div>" if legend else ""
    return f"<figure>{caption}{legend}{drawing}</figure>"


def _plots(report: Report, place: str) -> Iterator[str]:
    """Every plot of one backend and device, and a line for each that cannot be drawn."""
    rows = list(enumerate(row for row in report.rows if row.place == place))
    shapes = {(latency.batch, latency.sequence) for _, row in rows for latency in row.latencies}
    batches, sequences = sorted({batch for batch, _ in shapes}), sorted({sequence for _, sequence in shapes})
    missing, figures = [], []
    if len(batches) > 1:
        charts = {f"{sequence} tokens": _curves(rows, "batch", _median, sequence=sequence) for sequence in sequences}
        figures += _family("Median latency against batch", charts, place, ("batch", "ms; whiskers to p95"))
    else:
        missing.append("Latency against batch: needs two batch sizes, see --batch_sizes.")
    if len(sequences) > 1:
        charts = {f"batch {batch}": _curves(rows, "sequence", _throughput, batch=batch) for batch in batches}
        figures += _family("Throughput against sequence", charts, place, ("tokens a row", "samples/s"))
    else:
        missing.append("Throughput against sequence: needs two lengths, see --seq_lengths.")
    figures += _accuracy(report, rows, place, report.largest_shape)
    charts = {f"{sequence} tokens": _curves(rows, "batch", _share, sequence=sequence) for sequence in sequences}
    if any(charts.values()):
        figures += _family(
            "Share of the GPU's peak against batch",
            charts,
            place,
            ("batch", "% of the peak at the precision of the row"),
            100.0,
        )
    else:
        missing.append(f"Share of peak: no peak is known for {place.rpartition(', ')[2]} at these precisions.")
    figures += _buckets(rows, place)
    if layers := _layers(rows, place):
        figures += layers
    else:
        missing.append("Time by layer: not profiled.")
    yield f"<div class='plots'>{''.join(figures)}</div>"
    yield f"<p class='faint'>{escape(' '.join(missing))}</p>"


#: A value, where its whisker ends (None: it has none), and both as text.
Reading = tuple[float, float | None, str]


def _median(latency: Latency) -> Reading | None:
    return latency.median_ms, latency.p95_ms, f"{ms(latency.median_ms)} ms, p95 {ms(latency.p95_ms)} ms"


def _throughput(latency: Latency) -> Reading | None:
    return latency.samples_per_s, None, f"{rate(latency.samples_per_s)} samples/s"


def _share(latency: Latency) -> Reading | None:
    share = latency.peak_share
    return None if share is None else (100 * share, None, percent(share))


def _curves(
    rows: Sequence[tuple[int, Row]], over: str, read: Callable[[Latency], Reading | None], **fixed: int
) -> list[Series]:
    """A series for each row over its batches or sequences, the other held at what `fixed` says; rows without one left out."""
    ((held, value),) = fixed.items()
    series = []
    for index, row in rows:
        latencies = sorted(
            (each for each in row.latencies if getattr(each, held) == value), key=lambda each: getattr(each, over)
        )
        points = [
            Point(getattr(each, over), reading[0], f"{row.name}, {each.shape}: {reading[2]}", reading[1])
            for each in latencies
            if (reading := read(each))
        ]
        if points:
            series.append(Series(row.name, index, tuple(points)))
    return series


def _family(
    title: str, charts: Mapping[str, list[Series]], place: str, labels: tuple[str, str], full: float | None = None
) -> list[str]:
    """One figure for each chart that has a series, all on the same axes: they can be held against each other.

    With `full`, what a whole is, the vertical axis is linear from 0 to at least there.
    """
    points = [point for series in charts.values() for each in series for point in each.points]
    x = choice_axis([point.x for point in points])
    ends = [] if full is None else [0.0, full]
    y = value_axis([*ends, *(value for point in points for value in (point.y, point.high) if value is not None)])
    figures = []
    for at, series in charts.items():
        if series:
            whole = f"{title}, {at}"
            legend = [(each.index, each.name) for each in series]
            figures.append(figure(whole, place, chart(series, x, y, labels, f"{whole}, {place}"), legend))
    return figures


def _accuracy(report: Report, rows: Sequence[tuple[int, Row]], place: str, shape: str) -> list[str]:
    series = []
    for index, row in rows:
        score, median = report.score_x100(row), row.median_ms(shape)
        if score is not None and median is not None:
            series.append(Series(row.name, index, (Point(median, score, f"{row.name}: {score:.2f}, {ms(median)} ms"),)))
    if not series:
        return []
    recorded = next((row.fp32_metrics for _, row in rows if row.fp32_metrics), {}) or {}
    torch = 100 * recorded[report.main_metric] if report.main_metric in recorded else None
    scores = [each.points[0].y for each in series] + ([] if torch is None else [torch])
    title = f"Accuracy against latency, {shape}"
    label = f"{report.main_metric} x100" + (f", {SAMPLE_LABEL}" if report.is_sample else "")
    x, y = value_axis([0.0, *(each.points[0].x for each in series)]), value_axis(scores, from_zero=False)
    drawn = chart(series, x, y, ("median ms; left is faster", label), f"{title}, {place}", lines=False, reference=torch)
    return [
        figure(
            title,
            place,
            drawn,
            [(each.index, each.name) for each in series],
            "" if torch is None else "torch FP32, recorded in the run",
        )
    ]


def _buckets(rows: Sequence[tuple[int, Row]], place: str) -> list[str]:
    items: list[tuple[str, float, int, str]] = []
    for index, row in rows:
        if row.lengths:
            bucketed, fixed = row.lengths.bucket_samples_per_s, row.lengths.fixed_samples_per_s
            items.append(
                (f"{row.name}, length buckets", bucketed, index, f"{rate(bucketed)} ({row.lengths.ratio:.2f}x)")
            )
            items.append((f"{row.name}, fixed {row.lengths.fixed}", fixed, index, rate(fixed)))
    if not items:
        return []
    title = "Throughput of the development set"
    return [figure(title, place, bars(items, f"{title}, {place}", "samples/s"))]


#: Bars of a plot of layers; the rest is one bar more.
_LAYERS = 9


def _layers(rows: Sequence[tuple[int, Row]], place: str) -> list[str]:
    """Where the time of a batch goes: a figure for each row, all on one scale."""
    profiled = [(row, row.layer_times, _layer_bars(index, row.layer_times)) for index, row in rows if row.layer_times]
    most = max((value for _, _, items in profiled for _, value, _, _ in items), default=0.0)
    figures = []
    for row, times, items in profiled:
        title = f"Time by layer, {row.name}, {times.batch}x{times.sequence}"
        unit = f"ms, median of {times.iterations} batches, by the backend's profiler"
        figures.append(figure(title, place, bars(items, f"{title}, {place}", unit, most)))
    return figures


def _layer_bars(index: int, times: LayerTimes) -> list[tuple[str, float, int, str]]:
    """The kinds of layer that take longest, and all others as one, as items of `bars`."""
    kinds = by_kind(times)
    rest = kinds[_LAYERS:]
    if rest:
        kinds[_LAYERS:] = [("all others", sum(ms for _, ms, _ in rest), sum(count for _, _, count in rest))]
    return [
        (
            name if count == 1 else f"{name} ({count})",
            value,
            index,
            f"{ms(value)} ms, {percent(value / (times.total_ms or 1))}",
        )
        for name, value, count in kinds
    ]


def provenance_section(origin: Mapping[str, Any]) -> str:
    """Where the figures come from, folded; nested mappings become nested lists."""

    def items(values: Mapping[str, Any]) -> str:
        lines = []
        for key, value in values.items():
            if isinstance(value, Mapping):
                lines.append(f"<li>{escape(key)}<ul>{items(value)}</ul></li>")
            else:
                text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
                lines.append(f"<li>{escape(key)}: {escape('unknown' if value is None else text)}</li>")
        return "".join(lines)

    listed = f"<ul class='provenance'>{items(origin)}</ul>"
    return f"<details><summary>Provenance</summary>{listed}</details>"
