"""The columns of a job: those that hold the text, those of the answers, and a row of the output."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.engine.manifest import TaskInfo
from q8trt.errors import ConfigError, DataError
from q8trt.inference.files.config import ScoringConfig
from q8trt.inference.files.places import REJECTED_HEADER
from q8trt.inference.files.records import TEXT_COLUMN, Record
from q8trt.tasks.data.tabular import text_column_names
from q8trt.tasks.glue import TASKS

if TYPE_CHECKING:
    from q8trt.inference import Answer

Value = str | float
_log = logging.getLogger(__name__)
#: Characters of a rejected row that are kept.
_QUOTED = 2000
#: What a spreadsheet takes for the beginning of a formula; the last four are full-width.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Layout:
    """The columns of one job.

    Attributes:
        columns: those of the input, as far as they are known before it is read.
        texts: the one or two of them that hold the text.
        names: the columns that are added: the score of a regression; or the label, then a probability of each label.
        labels: the labels, in the order of their probabilities; () for a regression.
        kind: the ending of the output.
        safe_csv: whether cells that a spreadsheet would run get a ' before them.
    """

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str
    safe_csv: bool = False

    def reason(self, values: Mapping[str, Any]) -> str:
        """Return why a row cannot be scored or written; "" where it can."""
        for name in self.texts:
            value = values.get(name)
            if value is None:
                return f"column {name!r} {'has no value' if name in values else 'is missing'}"
            if not isinstance(value, str):
                return f"column {name!r} holds {json.dumps(value, ensure_ascii=False)[:40]}, expected a string"
            if not value.strip():
                return f"column {name!r} is empty"
        if clash := next((name for name in self.names if name in values), None):
            return f"key {clash!r} would be overwritten by the answer; the first row has none of that name"
        if self.kind != ".jsonl" and (extra := next((name for name in values if name not in self.columns), None)):
            return f"key {extra!r} is not among the first row's ({', '.join(self.columns)}); --output .jsonl keeps all keys"
        return ""

    def text(self, values: Mapping[str, Any]) -> str | tuple[str, str]:
        """Return what the engine is given."""
        return values[self.texts[0]] if len(self.texts) == 1 else (values[self.texts[0]], values[self.texts[1]])

    def header(self) -> bytes:
        """Return the first line of the output; empty for JSON Lines."""
        return b"" if self.kind == ".jsonl" else self._line([*self.columns, *self.names])

    def lines(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[float | Answer]) -> bytes:
        """Return the rows with their answers, as they stand in the output."""
        return b"".join(
            self._json({**values, **dict(zip(self.names, self._results(answer), strict=True))})
            if self.kind == ".jsonl"
            else self._line([*(_cell(values.get(name)) for name in self.columns), *self._results(answer)])
            for values, answer in zip(rows, answers, strict=True)
        )

    def _results(self, answer: float | Answer) -> Iterator[Value]:
        """Seven significant digits: what a float32 holds."""
        if isinstance(answer, float):
            yield float(f"{answer:.7g}")
            return
        yield answer.label
        yield from (float(f"{answer.probabilities[label]:.7g}") for label in self.labels)

    def rejected(self, records: Sequence[Record], header: bool) -> bytes:
        """Return the lines of rejected rows; `header` is whether the file's first line comes before them."""
        if not records:
            return b""
        lines = [REJECTED_HEADER] if header else []
        for record in records:
            row = record.raw.decode("utf-8", "replace").rstrip("\r\n")[:_QUOTED]
            lines.append(csv_line(self._safe([record.line, record.reason, row])))
        return b"".join(lines)

    def _json(self, row: Mapping[str, Any]) -> bytes:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def _line(self, cells: Sequence[Value]) -> bytes:
        cells = self._safe(cells)
        if self.kind == ".tsv":
            return ("\t".join(map(str, cells)) + "\n").encode()
        return csv_line(cells)

    def _safe(self, cells: Sequence[Value]) -> Sequence[Value]:
        return [_safe_cell(cell) for cell in cells] if self.safe_csv else cells


def csv_line(cells: Sequence[Value]) -> bytes:
    """Return one record of a CSV file, quoted where it must be."""
    text = io.StringIO()
    # The writer quotes cells that hold a character of the line's end: with "\n" alone, a lone "\r" would go unquoted.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return (text.getvalue()[:-2] + "\n").encode()


def _safe_cell(cell: Value) -> Value:
    """Return a cell with a ' before what a spreadsheet would run as a formula; numbers stay."""
    if isinstance(cell, str) and cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def is_finite(answer: float | Answer) -> bool:
    """Return whether an answer can be written: JSON has no NaN and no infinity."""
    values = [answer] if isinstance(answer, float) else answer.probabilities.values()
    return all(map(math.isfinite, values))


def _cell(value: Any) -> str:
    """A JSON value in a cell; strings as they are."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def make_layout(
    path: Path, kind: str, header: Sequence[str], task: TaskInfo, config: ScoringConfig, plain: bool = False
) -> Layout:
    """Return the layout for a file with the columns `header`.

    Args:
        path: the input, for messages.
        kind: the ending of the output.
        header: the columns of the input.
        task: the engine's.
        config: the job's options.
        plain: whether the input is plain text, which has one text a line.

    Raises:
        ConfigError: two columns were asked for and texts are single, or one and they are pairs; or TSV cannot hold a label.
        DataError: a text column is missing, or the file is plain text and the task takes pairs.
    """
    if plain and task.is_pair:
        raise DataError(
            f"{path}: plain text has one text a line, and {task.name} takes pairs; use .csv, .tsv or .jsonl"
        )
    texts = (TEXT_COLUMN,) if plain else _text_columns(path, header, task, config.text_columns)
    names = ("score",) if task.is_regression else ("label", *(f"probability_{label}" for label in task.labels))
    if set(names) & set(header):
        names = tuple(f"predicted_{name}" for name in names)
    if clash := set(names) & set(header):
        raise DataError(f"{path}: column {min(clash)!r} is there already, and would be overwritten; rename it")
    if kind == ".tsv" and (label := next((each for each in task.labels if re.search(r"[\t\r\n]", each)), None)):
        raise ConfigError(
            f"label {label!r} of the engine does not fit into TSV, which has no quotes; use .csv or .jsonl"
        )
    return Layout(tuple(header), tuple(texts), names, tuple(task.labels), kind, config.safe_csv)


def _text_columns(path: Path, header: Sequence[str], task: TaskInfo, chosen: Sequence[str] | None) -> Sequence[str]:
    """Return the columns to score: those that were asked for, else those of the training, else common names."""
    if chosen and len(chosen) != (2 if task.is_pair else 1):
        what = "pairs: give two columns" if task.is_pair else "single texts: give one column"
        raise ConfigError(f"--text_column_names {' '.join(chosen)}: {task.name} takes {what}")
    known, glue = task.text_columns, TASKS.get(task.name)
    choices = text_column_names(task.is_pair, glue, chosen or known)
    if known and not chosen and glue:  # the official files and the hub name the same columns differently
        choices = [known, glue.text_columns, *([glue.hub_columns] if glue.hub_columns else [])]
    texts = next((names for names in choices if set(names) <= set(header)), None)
    if texts is None and header:
        trained = ", on which the engine was trained" if known and not chosen else ""
        raise DataError(
            f"{path}: no column {' and '.join(map(repr, choices[0]))}{trained}; found {', '.join(map(repr, header))} "
            "(--text_column_names chooses others)"
        )
    if texts and not (chosen or known):
        _log.info(
            "columns scored: %s, chosen by name: the engine does not say which it was trained on", ", ".join(texts)
        )
    return texts or ()
