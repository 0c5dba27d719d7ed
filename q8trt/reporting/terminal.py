"""Tables and sentences on the terminal, by rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from q8trt.reporting.table import Phrase, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_STYLES = {"plain": "", "good": "green", "bad": "bold red", "warning": "yellow"}


def say(console: Console, text: str | Phrase = "", style: str = "") -> None:
    """Print a sentence as it is, without markup."""
    from rich.text import Text

    phrase = text if isinstance(text, Phrase) else Phrase(text)
    console.print(Text(phrase.text, style=style or _STYLES[phrase.tone]))


def print_lines(console: Console, lines: Iterable[str | Phrase]) -> None:
    """Print sentences, one per line."""
    for line in lines:
        say(console, line)


def print_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in facts:
        grid.add_row(Text(name, style="dim"), Text(text))
    console.print(grid)


def print_table(console: Console, table: Table, optional: bool = False, legend: bool = True) -> bool:
    """Print title, table and legend in the widest layout that fits `console` without cutting a figure.

    Args:
        console: rich's console.
        table: the table; if there is no room, columns of a high rank are left out, and a line names them.
        optional: if no layout fits, print nothing instead of lines that are too long.
        legend: whether to print the legend.

    Returns:
        True if the table was printed.
    """
    fitting = _fitting(console, table)
    if fitting is None and optional:
        return False
    rank, layout = fitting or (0, rich_table(table.up_to(0), 0))
    if table.title:
        say(console, table.title, "bold")
    console.print(layout, crop=False)
    if left_out := [column.title for column in table.columns if column.rank > rank]:
        say(console, f"not shown at this width: {', '.join(left_out)}", "dim")
    if table.legend and legend:
        say(console, table.legend, "dim")
    console.print()
    return True


def print_rows(console: Console, table: Table) -> None:
    """Print each row as a paragraph, where no layout of `table` fits: its first cell, which is never cut, then its figures."""
    from rich.padding import Padding
    from rich.text import Text

    for row, (name, *texts) in zip(table.rows, table.texts(), strict=True):
        pairs = zip(table.columns[1:], row[1:], texts, strict=True)
        facts = [f"{column.title} {text}" for column, cell, text in pairs if cell is not None]
        console.print(Text(name), soft_wrap=True)
        console.print(Padding(Text("  ".join(facts)), (0, 0, 0, 2)))
    console.print()


def _fitting(console: Console, table: Table) -> tuple[int, RichTable] | None:
    """Return the first layout that needs no wrapping, or else the first that cuts no figure, with its highest rank.

    Return None if every layout cuts a figure.
    """
    from rich.measure import Measurement

    ranks = sorted({column.rank for column in table.columns}, reverse=True)
    layouts = [(rank, rich_table(table.up_to(rank), padding)) for rank in ranks for padding in (1, 0)]
    # With the console's own width as the limit, every layout would seem to fit.
    unbounded = console.options.update(max_width=10_000)
    widths = [Measurement.get(console, unbounded, layout) for _, layout in layouts]
    whole = [layout for layout, width in zip(layouts, widths, strict=True) if width.maximum <= console.width]
    uncut = [layout for layout, width in zip(layouts, widths, strict=True) if width.minimum <= console.width]
    return next(iter(whole + uncut), None)


def rich_table(table: Table, padding: int = 1) -> RichTable:
    """Return `table` as a rich table, in which only columns with `wraps` wrap."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, padding=(0, padding, 0, 0), pad_edge=False)
    texts = table.texts()
    for index, column in enumerate(table.columns):
        heading = "\n".join(part for part in (column.heading, column.unit) if part)
        if column.wraps:
            drawn.add_column(Text(heading), justify=column.align, overflow="fold")
        else:
            lines = [line for text in (heading, *(row[index] for row in texts)) for line in text.split("\n")]
            drawn.add_column(Text(heading), justify=column.align, no_wrap=True, min_width=max(map(len, lines)))
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        drawn.add_row(*(Text(column.text(cell), style=_STYLES[column.tone(cell)]) for column, cell in cells))
    return drawn
