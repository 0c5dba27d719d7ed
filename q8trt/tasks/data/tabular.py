"""A user's own file: CSV (quoted), TSV (not quoted), JSON Lines or Parquet, by its extension."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.errors import DataError, nearest
from q8trt.tasks.data.examples import Examples, check_row, collect
from q8trt.tasks.data.labels import accepted_labels
from q8trt.tasks.data.opening import LONGEST_LINE, open_data, path_name, shown, shown_names, text_lines
from q8trt.tasks.glue import Task

_PAIRS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("query", "document"),
    ("query", "passage"),
)
_SINGLES = (("sentence",), ("text",), ("sentence1",))
_LABELS = ("label", "labels", "score")
#: Limits of one line of JSON Lines, a small object.
_JSON_LIMITS = files.Limits(size=LONGEST_LINE, depth=16, values=100_000)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: Lines by the rules of CSV, where a carriage return also ends a line.
_CSV_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")

Values = tuple[str, Sequence[Any]]
"""The place of a row (``file:line``) and its values in the chosen columns."""


@dataclass(frozen=True)
class Table:
    """An open file of rows.

    Attributes:
        columns: the names of the columns, in order; [] if the file is empty.
        select: function of column names that returns the rows, each with the values of these columns.
    """

    columns: list[str]
    select: Callable[[Sequence[str]], Iterator[Values]]


def read_table(
    path: str | Path,
    task: Task,
    split: str,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
) -> Examples:
    """Read a file of labeled examples.

    Without `text_columns`, `text_column_names` lists the accepted columns. `labels.label_id` defines the accepted labels.

    Raises:
        DataError: the file is missing, its extension is unknown, a column is missing or appears twice, or a row cannot be
            used. The message names the file and the line, or the row for Parquet.
    """
    path = Path(path)
    table = open_table(path)
    if not table.columns:
        raise DataError(f"{path_name(path)}: no examples")
    check_unique(table.columns, path_name(path))
    texts, label = _choose_columns(path, table.columns, task, text_columns, label_column)
    spellings = accepted_labels(task)
    rows = []
    for where, values in table.select([*texts, label]):
        if None in values:
            column = [*texts, label][list(values).index(None)]
            raise DataError(f"{where}: column {column!r} has no value")
        rows.append(check_row(values[:-1], values[-1], task, where, spellings))
    if not rows:
        raise DataError(f"{path_name(path)}: no examples")
    source = f"file {path.name}"
    return collect(rows, task=task, split=split, source=source, text_columns=tuple(texts), label_column=label)


def open_table(path: Path, nested: Collection[str] = (), others: Sequence[str] = ()) -> Table:
    """Open a file of rows. Raises DataError if the file is missing or its extension is unknown.

    Args:
        path: the file.
        nested: the columns of lists or objects, which only JSON Lines and Parquet have.
        others: extensions that the caller reads itself, for the error.
    """
    open_data(path).close()  # a missing file is reported before an unknown extension
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        expected = ", ".join((*_READERS, *others))
        raise DataError(f"{path_name(path)}: unknown extension {path.suffix!r}; expected one of {expected}")
    table = reader(path, nested)
    _check_separator(path, table.columns)
    return table


def _check_separator(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError if the single column of a header contains another separator, as a spreadsheet may write it."""
    separator = _SEPARATORS.get(path.suffix.lower())
    if separator is None or len(columns) != 1:
        return
    if other := next((name for mark, name in _MARKS.items() if mark in columns[0] and name != separator), None):
        raise DataError(
            f"{path_name(path)}: the header {shown(columns[0])} is a single column with {other}; a {path.suffix} file has "
            f"{separator} between its columns: save it with {separator}, or rename the column"
        )


def check_unique(columns: Sequence[str], where: str) -> None:
    """Raise DataError if two columns have the same name, which is ambiguous."""
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise DataError(f"{where}: column {shown(name)} appears twice; rename one")
        seen.add(name)


def text_column_names(
    is_pair: bool, task: Task | None = None, chosen: Sequence[str] | None = None
) -> list[Sequence[str]]:
    """Return the accepted names of text columns, in order of preference.

    These are only the `chosen` ones, if given. Otherwise they are the task's names in the official TSV and on the hub, and
    then common names.
    """
    if chosen:
        return [chosen]
    official = filter(None, [task.text_columns, task.hub_columns]) if task else ()
    return [*official, *(_PAIRS if is_pair else _SINGLES)]


def choose_text_columns(
    where: str, columns: Sequence[str], choices: Sequence[Sequence[str]], hint: str, note: str = ""
) -> Sequence[str]:
    """Return the first of `choices` whose columns are all in the file.

    ``sentence1`` is not a single text if the file also has ``sentence2``.

    Args:
        where: the file, for the error.
        columns: the columns of the file.
        choices: the accepted names, see `text_column_names`.
        hint: the options that choose other columns, for the error.
        note: words after the missing columns in the error.

    Raises:
        DataError: no choice is in the file, or several columns could be the single text.
    """
    accepted = list(dict.fromkeys(map(tuple, choices)))
    present = [names for names in accepted if set(names) <= set(columns)]
    if len(accepted) > 1 and "sentence2" in columns:
        present = [names for names in present if names != ("sentence1",)]
    singles = [names[0] for names in present if names in _SINGLES]
    if len(singles) > 1:
        raise DataError(
            f"{where}: columns {' and '.join(map(repr, singles))} may hold the text; choose one: --text_column_names {singles[0]}"
        )
    if present:
        return present[0]
    missing = [name for name in accepted[0] if name not in columns] or accepted[0]
    problem = f"no column {' and '.join(map(repr, missing))}{note}"
    if len(accepted) > 1:
        *others, last = (" and ".join(map(repr, names)) for names in accepted)
        problem = f"no text column{note}; expected {', '.join(others)} or {last}"
    raise DataError(f"{where}: {problem}; found {shown_names(list(columns))}{nearest(missing[0], columns)} ({hint})")


def _choose_columns(
    path: Path, columns: list[str], task: Task, text_columns: Sequence[str] | None, label_column: str | None
) -> tuple[Sequence[str], str]:
    hint = "--text_column_names and --label_column_name choose others"
    choices = text_column_names(task.is_pair, task, text_columns)
    others = [name for name in columns if name != label_column or name in (text_columns or ())]
    texts = choose_text_columns(path_name(path), others, choices, hint)
    labels = [label_column] if label_column else [task.label_column, *_LABELS]
    label = next((name for name in labels if name in columns and name not in texts), None)
    if label is None:
        raise DataError(
            f"{path_name(path)}: no column {labels[0]!r}; found {shown_names(columns)}{nearest(labels[0], columns)} ({hint})"
        )
    return texts, label


def _fields_table(rows: Iterator[tuple[str, list[str]]]) -> Table:
    """Return the table of rows of fields, of which the first is the header; all rows must have its length."""
    columns = next(rows, ("", []))[1]

    def select(names: Sequence[str]) -> Iterator[Values]:
        positions = [columns.index(name) for name in names]
        for where, fields in rows:
            if len(fields) != len(columns):
                raise DataError(f"{where}: {len(fields)} fields, expected {len(columns)} as in the header")
            yield where, [fields[position] for position in positions]

    return Table(columns, select)


def tsv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each line (``file:line``) and its fields. Raises DataError, see `text_lines`."""
    name = path_name(path)
    return ((f"{name}:{number}", line.rstrip("\r\n").split("\t")) for number, line in text_lines(path))


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place where each row begins, and its fields, which may span lines if quoted. Blank lines are skipped."""
    name = path_name(path)
    lines = (piece for _, line in text_lines(path) for piece in _pieces(line))
    reader = csv.reader(lines, strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield f"{name}:{line}", fields
            line = reader.line_num + 1
    except csv.Error as error:
        unclosed = " (a quote that is never closed?)" if "limit" in str(error) else ""
        raise DataError(f"{name}:{line}: not CSV: {str(error).partition(' - ')[0]}{unclosed}") from None


def _pieces(line: str) -> list[str]:
    return _CSV_LINE.findall(line) if "\r" in line else [line]


def _jsonl(path: Path) -> Table:
    objects = _objects(path)
    first = next(objects, None)
    if first is None:
        return Table([], lambda names: iter(()))

    def select(names: Sequence[str]) -> Iterator[Values]:
        keys = [f'"{name}"' for name in names]
        for where, line, value in chain([first], objects):
            if any(line.count(key) > 1 for key in keys):
                _check_keys(line, where)
            yield where, [value.get(name) for name in names]

    return Table([*first[2]], select)


def _objects(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the place of each object, its line, and the object. Blank lines are skipped."""
    name = path_name(path)
    for number, line in text_lines(path):
        if line.strip():
            yield f"{name}:{number}", line, _json_object(line, f"{name}:{number}")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = files.parse_json(line, _JSON_LIMITS)
    except files.MalformedError as error:
        half = " (half of a surrogate pair?)" if _SURROGATE.search(line) else ""
        raise DataError(f"{where}: {error}{half}; expected one JSON object a line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, expected one object a line")
    return value


def _check_keys(line: str, where: str) -> None:
    """Raise DataError if an object has the same key twice. This is slow, so call it only for suspicious lines."""
    json.loads(line, object_pairs_hook=lambda pairs: check_unique([key for key, _ in pairs], where))


def _parquet(path: Path, nested: Collection[str]) -> Table:
    from q8trt.tasks.data.parquet import parquet_columns, parquet_rows

    return Table(parquet_columns(path), lambda names: parquet_rows(path, names, nested))


_MARKS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
_SEPARATORS = {".csv": "commas", ".tsv": "tabs"}
_READERS: dict[str, Callable[[Path, Collection[str]], Table]] = {
    ".csv": lambda path, _: _fields_table(_csv_rows(path)), ".tsv": lambda path, _: _fields_table(tsv_rows(path)),
    ".jsonl": lambda path, _: _jsonl(path), ".json": lambda path, _: _jsonl(path), ".parquet": _parquet,
}  # fmt: skip
