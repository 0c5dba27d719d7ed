"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from q8trt.console.names import markdown_code, markdown_text
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
    part_cells,
    score_cells,
    time_cells,
    x100,
)
from q8trt.reporting.report import Report, Row
from q8trt.reporting.verdict import verdict


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """A Markdown table; the first `words` columns are left-aligned, the rest, numbers, right-aligned."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if index < words else "---:" for index in range(len(headers))]
    return [line(headers), line(rule), *(line(row) for row in rows), ""]


def _figures(report: Report) -> list[str]:
    """The table of the terminal: score, sizes, and median and speed at each shape."""

    shapes = report.shapes if len(report.shapes) <= SUMMARY_SHAPES else []

    def cells(row: Row) -> list[str]:
        times = [cell for shape in shapes for cell in time_cells(report, row, shape)]
        return [row.name, row.place, row.precision, *score_cells(report, row).values(), *times]

    columns = score_cells(report, report.rows[0]) if report.rows else {}
    headers = [" ".join(column) for column in columns]
    if report.is_sample and headers:
        headers[0] += f" ({SAMPLE_LABEL})"
    times = [f"{shape} {unit}" for shape in shapes for unit in ("ms", "speed")]
    lines = _table(["", "runs on", "precision", *headers, *times], [cells(row) for row in report.rows], 3)
    return [*lines, f"{SPEEDUP_LEGEND}; -: not measured, or nothing comparable.", ""]


def _scores(report: Report) -> list[str]:
    """Every metric, of this backend and of the torch model it was exported from."""
    names = list(dict.fromkeys(name for row in report.rows for name in row.metrics))
    if not names:
        return []
    torch = any(row.torch_metrics for row in report.rows)
    headers = [f"{name} x100" for name in names] + ([f"torch {name} x100" for name in names] if torch else [])
    rows = [
        [
            row.name,
            row.place,
            *(x100(row.metrics.get(name)) for name in names),
            *(x100((row.torch_metrics or {}).get(name)) for name in names if torch),
        ]
        for row in report.rows
    ]
    label = f"Scores, {SAMPLE_LABEL}" if report.is_sample else "Scores"
    return [f"## {label}", "", *_table(["", "runs on", *headers], rows, 2)]


def _header(columns: Sequence[tuple[str, str]]) -> list[str]:
    return ["", "runs on", *(" ".join(column).strip() for column in columns)]


def _latencies(report: Report) -> list[str]:
    """Percentiles, throughput and arithmetic per row and shape; the parts of a query where the backend tells them."""
    if not report.shapes:
        return []
    rows = [
        [row.name, row.place, *detail_cells(report, row, latency), str(latency.iterations)]
        for row in report.rows
        for latency in row.latencies
    ]
    lines = ["## Latency", "", f"Timed is the {markdown_text(report.what_is_timed)}.", ""]
    lines += _table([*_header(DETAILS), "iterations"], rows, 3)
    parts = [
        [row.name, row.place, *part_cells(latency)] for row in report.rows for latency in row.latencies if latency.parts
    ]
    return [*lines, *(_table(_header(DEVICE_PARTS), parts, 3) if parts else [])]


def _lengths(report: Report) -> list[str]:
    rows = [[row.name, row.place, *length_cells(row)] for row in report.rows if row.lengths]
    if not rows:
        return []
    return [f"## {lengths_title(report)}", "", *_table(_header(LENGTHS), rows, 2), f"{LENGTHS_LEGEND}.", ""]


def _bullets(values: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in values.items():
        key = markdown_text(str(name))
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}", *_bullets(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}- {key}: {markdown_text(', '.join(map(str, value))) or 'none'}")
        else:
            text = "unknown" if value is None else str(value)
            text = markdown_code(text) if name == "command" else markdown_text(text)
            lines.append(f"{indent}- {key}: {text}")
    return lines


def markdown(report: Report) -> str:
    """The report as Markdown: figures, verdict, notes, every metric, latency, length buckets, provenance."""
    lines = [f"# {markdown_text(report.title)}", "", *_figures(report)]
    remarks = [*verdict(report), *(f"Note: {note}" for note in report.all_notes), *map(gpu_line, report.gpus)]
    lines += [f"- {markdown_text(remark)}" for remark in remarks] + ([""] if remarks else [])
    lines += [*_scores(report), *_latencies(report), *_lengths(report), "## Provenance", ""]
    lines += _bullets({"data": report.data_label, "data_fingerprint": report.data_fingerprint, **report.provenance})
    return "\n".join(lines) + "\n"
