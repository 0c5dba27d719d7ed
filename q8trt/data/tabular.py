"""A user's own file: CSV (quoted), TSV (not quoted), JSON Lines or Parquet, told apart by its extension."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from q8trt.data.examples import Examples, accepted_labels, check_row, collect, require
from q8trt.data.tsv import tsv_lines
from q8trt.errors import DataError
from q8trt.tasks import Task

_PAIRS = (("sentence1", "sentence2"), ("text1", "text2"), ("premise", "hypothesis"), ("question1", "question2"))
_SINGLES = (("sentence",), ("text",))
_LABELS = ("label", "labels", "score")

Record = tuple[str, Mapping[str, Any]]
"""Where a row is (``file:line``) and its values by column."""


def read_table(
    path: str | Path,
    task: Task,
    split: str,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
) -> Examples:
    """Read a file of labelled examples.

    Columns are, in this order of preference: those given; the task's own, as the official TSV or the hub names them;
    common names (sentence1 and sentence2, sentence, text, ...; label, score). Labels are names or ids.

    Raises:
        DataError: no such file, an unknown extension, a missing column (lists those found), or a row that cannot be
            used (names file and line; file and row for Parquet).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown extension {path.suffix!r}; expected one of {', '.join(_READERS)}")
    records = reader(path)
    first = next(records, None)
    if first is None:
        raise DataError(f"{path}: no examples")
    texts, label = _choose_columns(path, list(first[1]), task, text_columns, label_column)
    spellings = accepted_labels(task)
    rows = [
        check_row([_value(record, name, where) for name in texts], _value(record, label, where), task, where, spellings)
        for where, record in _chain(first, records)
    ]
    return collect(rows, task=task, split=split, source=f"file {path.name}")


def _chain(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from rest


def _value(record: Mapping[str, Any], column: str, where: str) -> Any:
    value = record.get(column)
    if value is None:
        raise DataError(f"{where}: column {column!r} has no value")
    return value


def text_column_names(
    is_pair: bool, task: Task | None = None, given: Sequence[str] | None = None
) -> list[Sequence[str]]:
    """The names that text columns may have, the preferred ones first: those given and no other; else the task's own, as
    the official TSV or the hub names them; then common ones."""
    if given:
        return [given]
    own = filter(None, [task.text_columns, task.hub_columns]) if task else ()
    return [*own, *(_PAIRS if is_pair else _SINGLES)]


def _choose_columns(
    path: Path, found: Sequence[str], task: Task, text_columns: Sequence[str] | None, label_column: str | None
) -> tuple[Sequence[str], str]:
    texts = text_column_names(task.is_pair, task, text_columns)
    labels = [label_column] if label_column else [task.label_column, *_LABELS]
    chosen = next((names for names in texts if set(names) <= set(found)), None)
    label = next((name for name in labels if name in found), None)
    if chosen is None or label is None:
        missing = texts[0] if chosen is None else labels[:1]
        raise DataError(
            f"{path}: no column {' and '.join(map(repr, missing))}; found {', '.join(map(repr, found))} "
            "(--text_column_names and --label_column_name choose others)"
        )
    return chosen, label


def _record(columns: Sequence[str], fields: Sequence[str], where: str) -> Record:
    if len(fields) != len(columns):
        raise DataError(f"{where}: {len(fields)} fields, expected {len(columns)} as in the header")
    return where, dict(zip(columns, fields, strict=True))


def _tsv(path: Path) -> Iterator[Record]:
    lines = tsv_lines(path)
    columns = next(lines, (1, [""]))[1]
    return (_record(columns, fields, f"{path}:{number}") for number, fields in lines)


def _csv(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = next(reader, [])
            line = reader.line_num + 1
            for fields in reader:
                # A quoted field may span lines: a row is named by its first. Blank lines are no rows, as in JSON Lines.
                if fields:
                    yield _record(columns, fields, f"{path}:{line}")
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason}; convert the file to UTF-8") from error


def _jsonl(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _json_object(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason}; convert the file to UTF-8") from error


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; expected one object a line"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, expected one object a line")
    return value


def _parquet(path: Path) -> Iterator[Record]:
    parquet = require("pyarrow.parquet", "reading Parquet")
    arrow = require("pyarrow", "reading Parquet")
    try:
        records = parquet.read_table(path).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not Parquet: {str(error).splitlines()[0]}") from error
    return ((f"{path}: row {number}", record) for number, record in enumerate(records, start=1))


_READERS = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".json": _jsonl, ".parquet": _parquet}
