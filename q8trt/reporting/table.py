"""A report on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from q8trt.reporting.cells import (
    DETAILS,
    DEVICE_PARTS,
    LENGTHS,
    LENGTHS_LEGEND,
    SPEEDUP_LEGEND,
    Column,
    detail_cells,
    gpu_line,
    length_cells,
    lengths_title,
    part_cells,
    score_cells,
    time_cells,
)
from q8trt.reporting.report import Report, Row
from q8trt.reporting.verdict import verdict


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], padding: int) -> Table:
    """Words left, numbers right. Only the second column (backend and device) may wrap: a cut number is a wrong one."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, padding, 0, 0), pad_edge=False)
    for index, header in enumerate(headers):
        cells = [header, *(row[index] for row in rows)]
        width = max(len(line) for cell in cells for line in cell.split("\n"))
        if index == 1:
            table.add_column(Text(header), overflow="fold")
        else:
            table.add_column(Text(header), justify="right" if index else "left", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _wide(report: Report, padding: int) -> Table:
    """One line per row, two columns per shape."""

    def cells(row: Row) -> list[str]:
        times = [cell for shape in report.shapes for cell in time_cells(report, row, shape)]
        return [row.name, row.place, *score_cells(report, row).values(), *times]

    headers = [*_score_headers(report), *(f"{shape}\n{unit}" for shape in report.shapes for unit in ("ms", "speed"))]
    return _table(headers, [cells(row) for row in report.rows], padding)


def _score_headers(report: Report) -> list[str]:
    columns = score_cells(report, report.rows[0]) if report.rows else {}
    return ["", "runs on", *("\n".join(column) for column in columns)]


def _scores(report: Report) -> Table:
    return _table(
        _score_headers(report), [[row.name, row.place, *score_cells(report, row).values()] for row in report.rows], 1
    )


def _fitting(console: Console, tables: Sequence[Table]) -> list[Table]:
    """The first of `tables` that needs no wrapping, else the first that cuts no number, else none; in a list."""

    def width(table: Table) -> Measurement:
        # The console's own width would clamp the measure to itself, and everything would seem to fit.
        return Measurement.get(console, console.options.update(max_width=10_000), table)

    whole = [table for table in tables if width(table).maximum <= console.width]
    return (whole or [table for table in tables if width(table).minimum <= console.width])[:1]


def _without(columns: Sequence[Column], rows: Sequence[Sequence[str]], dropped: Sequence[str]) -> Table:
    """A table of rows that begin with name and place, without the columns whose header begins with one of `dropped`."""
    kept = [index for index, column in enumerate(columns) if column[0] not in dropped]
    cells = [[*row[:2], *(row[2 + index] for index in kept)] for row in rows]
    return _table(["", "runs on", *("\n".join(columns[index]).strip() for index in kept)], cells, 1)


def _details(report: Report) -> list[Table]:
    """Percentiles, throughput and arithmetic, one line per row and shape; from all columns to few."""
    rows = [[row.name, row.place, *detail_cells(report, row, each)] for row in report.rows for each in row.latencies]
    fewer = [
        (),
        ("mean", "p90"),
        ("mean", "p90", "p95", "queries"),
        ("mean", "p90", "p95", "queries", "GEMM", "of", "samples"),
    ]
    return [_without(DETAILS, rows, dropped) for dropped in fewer] if rows else []


def _device_parts(report: Report) -> list[Table]:
    rows = [[row.name, row.place, *part_cells(each)] for row in report.rows for each in row.latencies if each.parts]
    return [_without(DEVICE_PARTS, rows, dropped) for dropped in ((), ("host wall", "copies"))] if rows else []


def _lengths(report: Report) -> list[Table]:
    rows = [[row.name, row.place, *length_cells(row)] for row in report.rows if row.lengths]
    return [_without(LENGTHS, rows, dropped) for dropped in ((), ("batch", "tokens"))] if rows else []


def print_report(report: Report, console: Console) -> None:
    """Print title, figures, verdict and notes, in the widest layout that `console` holds without cutting a number."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    say(report.title, "bold")
    console.print()
    summary = _fitting(console, (_wide(report, 1), _wide(report, 0))) or [_scores(report)]
    for table in (*summary, *_fitting(console, _details(report)), *_fitting(console, _device_parts(report))):
        console.print(table)
        console.print()
    if title := lengths_title(report):
        say(title, "bold")
        for table in _fitting(console, _lengths(report)):
            console.print(table)
        console.print()
        say(LENGTHS_LEGEND, "dim")
    if report.shapes:
        say(SPEEDUP_LEGEND, "dim")
        say(f"ms: median of {report.what_is_timed}", "dim")
    for gpu in report.gpus:
        say(gpu_line(gpu))
    for line in verdict(report):
        say(line)
    for note in report.all_notes:
        say(f"Note: {note}", "yellow")
