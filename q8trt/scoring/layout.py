"""Which columns hold the text, what the answers are called, and what a row looks like in the output."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.data.tabular import text_column_names
from q8trt.engine.manifest import TaskInfo
from q8trt.errors import ConfigError, DataError
from q8trt.tasks import TASKS

if TYPE_CHECKING:
    from q8trt.app import Answer

Value = str | float


@dataclass(frozen=True)
class Layout:
    """The columns of one job.

    Attributes:
        columns: those of the input, as far as they are known before it is read.
        texts: the one or two of them that hold the text.
        names: the columns that are added: the score of a regression; or the label, then a probability of each label.
        labels: the labels, in the order of their probabilities; () for a regression.
        kind: the ending of the output.
    """

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str

    def reason(self, values: Mapping[str, Any]) -> str:
        """Why a row cannot be scored or written; "" where it can."""
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
        """What the engine is given."""
        return values[self.texts[0]] if len(self.texts) == 1 else (values[self.texts[0]], values[self.texts[1]])

    def header(self) -> bytes:
        """The first line of the output; empty for JSON Lines."""
        return b"" if self.kind == ".jsonl" else self._line([*self.columns, *self.names])

    def lines(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[float | Answer]) -> bytes:
        """The rows with their answers, as they stand in the output."""
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

    def _json(self, row: Mapping[str, Any]) -> bytes:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()

    def _line(self, cells: Sequence[Value]) -> bytes:
        if self.kind == ".tsv":
            return ("\t".join(map(str, cells)) + "\n").encode()
        return csv_line(cells)


def csv_line(cells: Sequence[Value | int]) -> bytes:
    """One record of a CSV file, quoted where it must be."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """A JSON value in a cell; strings as they are."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def make_layout(
    path: Path, kind: str, found: Sequence[str], task: TaskInfo, given: Sequence[str] | None, plain: bool = False
) -> Layout:
    """The layout for a file with the columns `found`.

    Args:
        path: the input, for messages.
        kind: the ending of the output.
        found: the columns of the input.
        task: the engine's.
        given: the text columns that were asked for; None for the usual ones.
        plain: the input is plain text, which has one text a line.

    Raises:
        ConfigError: two columns were given for single texts, or one for pairs.
        DataError: a text column is missing, or the file is plain text and the task takes pairs.
    """
    number = 2 if task.is_pair else 1
    if given and len(given) != number:
        what = "pairs: give two columns" if task.is_pair else "single texts: give one column"
        raise ConfigError(f"--text_column_names {' '.join(given)}: {task.name} takes {what}")
    if plain and task.is_pair:
        raise DataError(
            f"{path}: plain text has one text a line, and {task.name} takes pairs; use .csv, .tsv or .jsonl"
        )
    choices = text_column_names(task.is_pair, TASKS.get(task.name), given)
    texts = next((names for names in choices if set(names) <= set(found)), None)
    if texts is None and found:
        raise DataError(
            f"{path}: no column {' and '.join(map(repr, choices[0]))}; found {', '.join(map(repr, found))} "
            "(--text_column_names chooses others)"
        )
    names = ("score",) if task.is_regression else ("label", *(f"probability_{label}" for label in task.labels))
    if set(names) & set(found):
        names = tuple(f"predicted_{name}" for name in names)
    if clash := set(names) & set(found):
        raise DataError(f"{path}: column {min(clash)!r} is there already, and would be overwritten; rename it")
    return Layout(tuple(found), tuple(texts or ()), names, tuple(task.labels), kind)
