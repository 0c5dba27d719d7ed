"""Two benchmark reports side by side on the terminal, as a page and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from q8trt import files
from q8trt.reporting.charts import Bar, BarChart
from q8trt.reporting.comparison import ScorePair, SideBySide, TimePair
from q8trt.reporting.formats import enumeration, ms, times
from q8trt.reporting.head import NOT_RECORDED, Facts, facts_table
from q8trt.reporting.html import Figure, render
from q8trt.reporting.scores import difference_text, score_text, shown_difference, with_unit
from q8trt.reporting.stored import StoredReport
from q8trt.reporting.table import PLACE, Column, Phrase, Table, words
from q8trt.reporting.terminal import print_lines, print_table
from q8trt.tasks.metrics import direction

if TYPE_CHECKING:
    from rich.console import Console

TITLE = "Two benchmarks side by side"
_LEGEND = (
    "speed: A's median time over B's; above 1, B is faster. If the backend, device or clock differs, the ratio "
    "compares that and not the models."
)


def print_side_by_side(both: SideBySide, console: Console) -> None:
    """Print both reports' heads, the tables, and the rows without a partner."""
    print_table(console, _head(both))
    for table in _tables(both):
        print_table(console, table)
    print_lines(console, _without_partner(both))


def comparison_html(both: SideBySide) -> str:
    """Return the page, a whole HTML document."""
    data = both.to_dict()
    return render(
        "comparison",
        title=TITLE,
        head=_head(both),
        figures=_figures(both.times),
        tables=[table.without_constant(PLACE) for table in _tables(both)],
        without_partner=_without_partner(both),
        provenance={"A": data["a"], "B": data["b"]},
    )


def write_side_by_side(folder: str | Path, both: SideBySide, name: str = "compare") -> tuple[Path, Path]:
    """Write ``<name>.html`` and ``.json`` into `folder`, each whole or not at all, and return the two paths.

    Raises:
        OSError: the folder cannot be written.
    """
    paths = Path(folder) / f"{name}.html", Path(folder) / f"{name}.json"
    files.write_text(paths[0], comparison_html(both))
    files.write_json(paths[1], both.to_dict())
    return paths


def _head(both: SideBySide) -> Table:
    return facts_table({"A": _facts(both.a), "B": _facts(both.b)})


def _facts(report: StoredReport) -> Facts:
    """Return the facts of a report's head and its commit."""
    return [*report.head.facts(), ("commit", (report.provenance.git_commit or "")[:10] or NOT_RECORDED)]


def _without_partner(both: SideBySide) -> list[Phrase]:
    names = (("A", both.only_in_a), ("B", both.only_in_b))
    return [Phrase(f"only in {letter}: {', '.join(rows)}") for letter, rows in names if rows]


def _tables(both: SideBySide) -> list[Table]:
    """Return the table of times and, if a report has scores, the table of scores."""
    scored = any(each.a_score_x100 is not None or each.b_score_x100 is not None for each in both.scores)
    return [_time_table(both.times), _score_table(both.scores)] if scored else [_time_table(both.times)]


def _time_table(pairs: Sequence[TimePair]) -> Table:
    columns = (
        words(""), words(PLACE, wraps=True), Column("batch x\nsequence"), Column("A", "median ms", format=ms),
        Column("B", "median ms", format=ms, missing="not timed in B"),
        Column("speed\nB over A", format=times, missing="not timed in B"), words("ratio\nacross", wraps=True),
    )  # fmt: skip
    rows = [
        (each.name, _place(each), each.shape, each.a_median_ms, each.b_median_ms, each.speed, _across(each))
        for each in pairs
    ]
    return Table(columns, tuple(rows), _LEGEND, "Times")


def _score_table(pairs: Sequence[ScorePair]) -> Table:
    metric = pairs[0].metric

    def shown(score_x100: float) -> str:
        return score_text(metric, score_x100 / 100)

    columns = (
        words(""), Column("A", with_unit(metric), format=shown, missing="not scored"),
        Column("B", with_unit(metric), format=shown, missing="not scored"),
        Column(
            "B - A", format=lambda points: difference_text(metric, points / 100), missing="not scored, or on different rows"
        ),
        words("data", wraps=True),
    )  # fmt: skip
    rows = [
        (
            each.name,
            each.a_score_x100,
            each.b_score_x100,
            _points(each),
            "; ".join(map(str, each.across)) or "the same rows",
        )
        for each in pairs
    ]
    legend = f"{metric}: lower is better" if direction(metric) < 0 else ""
    return Table(columns, tuple(rows), legend, "Scores")


def _points(pair: ScorePair) -> float | None:
    """Return the difference of the scores as the table shows them; None where `ScorePair.points` is None."""
    if pair.points is None or pair.a_score_x100 is None or pair.b_score_x100 is None:
        return None
    return shown_difference(pair.metric, pair.b_score_x100, pair.a_score_x100)


def _across(pair: TimePair) -> str:
    """Return the names of what differs, or "like for like" if nothing differs."""
    if pair.b_median_ms is None:
        return "not timed in B"
    return enumeration([each.name for each in pair.across] or ["like for like"])


def _place(pair: TimePair) -> str:
    """Return the place of both rows, once if it is the same."""
    return pair.a_place if pair.a_place == pair.b_place else f"A: {pair.a_place}; B: {pair.b_place}"


def _figures(pairs: Sequence[TimePair]) -> list[Figure]:
    """Return a figure for each row: both medians at each shape, with the places and what differs."""
    rows: dict[tuple[str, str, str], list[tuple[TimePair, float, float]]] = {}
    for pair in pairs:
        if pair.b_median_ms is not None and pair.speed is not None:
            rows.setdefault((pair.name, pair.a_place, pair.b_place), []).append((pair, pair.b_median_ms, pair.speed))
    figures = []
    for (name, _, _), timed in rows.items():
        bars = []
        for pair, b_median, speed in timed:
            bars.append(Bar(f"{pair.shape}, A", pair.a_median_ms, 0, f"{ms(pair.a_median_ms)} ms"))
            bars.append(Bar(f"{pair.shape}, B", b_median, 1, f"{ms(b_median)} ms, {times(speed)}"))
        first = timed[0][0]
        place = f"{_place(first)}; {_across(first)}"
        figures.append(Figure(f"{name}, median latency", place, BarChart(tuple(bars), "ms"), ((0, "A"), (1, "B"))))
    return figures
