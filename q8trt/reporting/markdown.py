"""A report as Markdown, and the pair of files a benchmark leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.reporting.report import SAMPLE_LABEL, SPEEDUP_LEGEND, Report, Row, ms, score_cells, time_cells, verdict, x100


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """A Markdown table; the first `words` columns are left-aligned, the rest, numbers, right-aligned."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---" if index < words else "---:" for index in range(len(headers))]
    return [line(headers), line(rule), *(line(row) for row in rows), ""]


def _figures(report: Report) -> list[str]:
    """The table of the terminal: score, sizes, and median and speed at each shape."""

    def cells(row: Row) -> list[str]:
        times = [cell for shape in report.shapes for cell in time_cells(report, row, shape)]
        return [row.name, row.place, row.precision, *score_cells(report, row).values(), *times]

    columns = score_cells(report, report.rows[0]) if report.rows else {}
    headers = [" ".join(column) for column in columns]
    if report.is_sample and headers:
        headers[0] += f" ({SAMPLE_LABEL})"
    times = [f"{shape} {unit}" for shape in report.shapes for unit in ("ms", "speed")]
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
            "-" if row.eval_samples_per_s is None else f"{row.eval_samples_per_s:.1f}",
        ]
        for row in report.rows
    ]
    label = f"Scores, {SAMPLE_LABEL}" if report.is_sample else "Scores"
    return [f"## {label}", "", *_table(["", "runs on", *headers, "samples/s"], rows, 2)]


def _latencies(report: Report) -> list[str]:
    """Percentiles per row and shape."""
    if not report.shapes:
        return []
    headers = ["", "runs on", "batch x sequence", "iterations"]
    headers += [f"{name} ms" for name in ("median", "mean", "p90", "p95", "p99", "min", "std")]
    rows = []
    for row in report.rows:
        for one in row.latencies:
            times = (one.median_ms, one.mean_ms, one.p90_ms, one.p95_ms, one.p99_ms, one.min_ms, one.std_ms)
            figures = [str(one.iterations), *map(ms, times), f"{one.samples_per_s:.1f}"]
            rows.append([row.name, row.place, one.shape, *figures])
    timed = report.what_is_timed
    return ["## Latency", "", f"Timed is the {timed}.", "", *_table([*headers, "samples/s"], rows, 3)]


def _bullets(values: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}", *_bullets(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}- {key}: {', '.join(map(str, value)) or 'none'}")
        else:
            text = f"`{value}`" if key == "command" else "unknown" if value is None else str(value)
            lines.append(f"{indent}- {key}: {text}")
    return lines


def markdown(report: Report) -> str:
    """The report as Markdown: figures, verdict, notes, every metric, latency percentiles, provenance."""
    lines = [f"# {report.title}", "", *_figures(report)]
    remarks = [*verdict(report), *(f"Note: {note}" for note in report.all_notes)]
    lines += [f"- {remark}" for remark in remarks] + ([""] if remarks else [])
    lines += [*_scores(report), *_latencies(report), "## Provenance", ""]
    lines += _bullets({"data": report.data_label, "data_fingerprint": report.data_fingerprint, **report.provenance})
    return "\n".join(lines) + "\n"


def write_report(folder: str | Path, report: Report, name: str = "benchmark") -> tuple[Path, Path]:
    """Write ``<name>.json`` and ``<name>.md`` into `folder`, each whole or not at all; returns the two paths.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a figure is NaN or infinite, which JSON has no word for; nothing is written.
    """
    json_path, markdown_path = Path(folder) / f"{name}.json", Path(folder) / f"{name}.md"
    files.write_json(json_path, report.to_dict())
    files.write_text(markdown_path, markdown(report))
    return json_path, markdown_path
