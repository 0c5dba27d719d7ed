"""A table of figures, which the terminal, Markdown and HTML renderers draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from q8trt.reporting.formats import number

Tone = Literal["plain", "good", "bad", "warning"]
#: Text of a cell without a value; `Column.missing` is the reason.
DASH = "-"
#: Heading of the column that names backend and device.
PLACE = "runs on"


@dataclass(frozen=True)
class Phrase:
    """Text with a judgment, which renderers show as a color.

    Attributes:
        text: a word of a table or a whole sentence.
        tone: "good", "bad", "warning" or "plain".
    """

    text: str
    tone: Tone = "plain"


#: Text, a phrase, or a value that its column formats; None if there is no value.
Cell = Any


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: title; only the terminal keeps a line break in it.
        unit: unit of the figures, on a separate line of the terminal.
        align: "right" for figures, "left" for words.
        format: format specification of a figure, or a function that returns its text.
        missing: why a cell may have no value.
        wraps: whether words wrap if there is little room; figures are never cut.
        rank: order in which a narrow terminal drops columns, the highest first; 0 stays.
    """

    heading: str
    unit: str = ""
    align: Literal["left", "right"] = "right"
    format: str | Callable[[Any], str] = ""
    missing: str = "not measured"
    wraps: bool = False
    rank: int = 0

    @property
    def title(self) -> str:
        """Heading and unit in one line."""
        return " ".join(f"{self.heading} {self.unit}".split())

    def text(self, cell: Cell) -> str:
        """Return the text of a cell."""
        if cell is None:
            return DASH
        if isinstance(cell, Phrase):
            return cell.text
        if callable(self.format):
            return self.format(cell)
        return cell if isinstance(cell, str) else number(cell, self.format)

    def tone(self, cell: Cell) -> Tone:
        """Return the judgment in a cell."""
        return cell.tone if isinstance(cell, Phrase) else "plain"


def words(heading: str, wraps: bool = False) -> Column:
    """Return a column of words."""
    return Column(heading, align="left", wraps=wraps)


@dataclass(frozen=True)
class Table:
    """Rows of cells below their columns.

    Attributes:
        columns: the first one names the row.
        rows: the cells of each row, one for each column.
        legend: explanation below the table.
        title: heading above it.

    Raises:
        ValueError: a row does not have one cell for each column.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    legend: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(
                f"{self.title or 'table'}: a row does not have one cell for each of {len(self.columns)} columns"
            )

    def texts(self) -> list[list[str]]:
        """Return the rows as text."""
        return [[column.text(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]

    def without_constant(self, heading: str) -> Table:
        """Return the table without the columns that have this heading and equal cells."""
        if not self.rows:
            return self
        cells = zip(*self.rows, strict=True)
        pairs = [
            (column, each)
            for column, each in zip(self.columns, cells, strict=True)
            if column.heading != heading or len(set(each)) > 1
        ]
        return replace(
            self,
            columns=tuple(column for column, _ in pairs),
            rows=tuple(zip(*(each for _, each in pairs), strict=True)),
        )

    def up_to(self, rank: int) -> Table:
        """Return the table without columns of a rank above `rank`."""
        at = [index for index, column in enumerate(self.columns) if column.rank <= rank]
        rows = tuple(tuple(row[index] for index in at) for row in self.rows)
        return Table(tuple(self.columns[index] for index in at), rows, self.legend, self.title)
