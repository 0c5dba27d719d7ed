"""A report on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from q8trt.reporting.report import SPEEDUP_LEGEND, Report, Row, score_cells, time_cells, verdict


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


def _narrow(report: Report) -> list[Table]:
    """Scores and sizes, then one line per row and shape: for many shapes or a narrow terminal."""
    scores = [[row.name, row.place, *score_cells(report, row).values()] for row in report.rows]
    times = [
        [row.name, row.place, shape, *time_cells(report, row, shape)] for row in report.rows for shape in report.shapes
    ]
    tables = [_table(_score_headers(report), scores, 1)]
    return [*tables, _table(["", "runs on", "batch x\nsequence", "median\nms", "speed"], times, 1)] if times else tables


def _fits(table: Table, console: Console) -> bool:
    # The console's own width would clamp the measure to itself, and everything would seem to fit.
    return Measurement.get(console, console.options.update(max_width=10_000), table).minimum <= console.width


def _throughput(report: Report) -> str:
    """Rows scored per second, of each row; "" where nothing was scored."""
    rates = [f"{row.name} {row.eval_samples_per_s:.0f}" for row in report.rows if row.eval_samples_per_s is not None]
    return f"samples/s on {report.split}, in length buckets: {', '.join(rates)}" if rates else ""


def print_report(report: Report, console: Console) -> None:
    """Print title, figures, verdict and notes, in the widest layout that `console` holds without cutting a number."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    say(report.title, "bold")
    console.print()
    tables = next(([table] for table in (_wide(report, 1), _wide(report, 0)) if _fits(table, console)), None)
    for table in tables or _narrow(report):
        console.print(table)
        console.print()
    if report.shapes:
        say(SPEEDUP_LEGEND, "dim")
        say(f"ms: median of {report.what_is_timed}", "dim")
    if throughput := _throughput(report):
        say(throughput)
    for line in verdict(report):
        say(line)
    for note in report.all_notes:
        say(f"Note: {note}", "yellow")
