"""Parquet files: the chosen columns alone, in batches, within a bound on what a small file may expand to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from q8trt.data.examples import require
from q8trt.data.opening import Allowance, open_data, path_name
from q8trt.errors import DataError

_BATCH_ROWS = 1024
#: Bytes that a row takes in memory beside its text.
_ROW_BYTES = 64


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        DataError: pyarrow is missing, or the file is not Parquet.
    """
    with open_data(path) as file:
        return list(_open(file, path).schema_arrow.names)


def parquet_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Yield where a row is, and its values in the columns `names`; the last one holds the labels.

    Raises:
        DataError: a column has a type that holds no texts or no labels, the file is damaged, or it expands to more than
            a file of its size may.
    """
    where = path_name(path)
    with open_data(path) as file:
        parquet = _open(file, path, names[:-1])
        for name in names[:-1]:
            _check_type(parquet.schema_arrow.field(name).type, name, where, is_text=True)
        _check_type(parquet.schema_arrow.field(names[-1]).type, names[-1], where, is_text=False)
        allowance = Allowance(where, path.stat().st_size)
        _check_size(parquet.metadata, names, allowance)
        number = 0
        for columns in _batches(parquet, names, where):
            for values in zip(*columns, strict=True):
                number += 1
                allowance.spend(_ROW_BYTES + sum(len(value) for value in values if isinstance(value, str)))
                yield f"{where}: row {number}", list(values)


def _open(file: BinaryIO, path: Path, texts: Sequence[str] = ()) -> Any:
    """Return a ``ParquetFile`` whose text columns stay dictionaries, as they are in the file, until they are read."""
    parquet = require("pyarrow.parquet", "reading Parquet")
    try:
        opened = parquet.ParquetFile(file, read_dictionary=list(texts))
        opened.schema_arrow  # noqa: B018 - read here, where errors are caught
    except _errors() as error:
        raise DataError(f"{path_name(path)}: not Parquet: {_first_line(error)}") from None
    return opened


def _errors() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises for a damaged file; ValueError is the root of its decoding errors."""
    arrow = require("pyarrow", "reading Parquet")
    return (arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_type(kind: Any, column: str, where: str, is_text: bool) -> None:
    types = require("pyarrow.types", "reading Parquet")
    value = kind.value_type if types.is_dictionary(kind) else kind
    tests = ["is_string", "is_large_string", "is_string_view", "is_null"]
    if not is_text:
        tests += ["is_integer", "is_floating", "is_decimal", "is_boolean"]
    if not any(getattr(types, test)(value) for test in tests if hasattr(types, test)):
        what = "text" if is_text else "text, numbers or true and false"
        raise DataError(f"{where}: column {column!r} has the type {' '.join(str(kind).split())}, expected {what}")


def _check_size(metadata: Any, names: Sequence[str], allowance: Allowance) -> None:
    """Refuse a file that says itself that it expands too far, before any of it is read."""
    expected = _ROW_BYTES * metadata.num_rows
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if column.path_in_schema in names:
                expected += column.total_uncompressed_size
    allowance.check(expected)


def _batches(parquet: Any, names: Sequence[str], where: str) -> Iterator[list[list[Any]]]:
    """Yield the values of the columns, batch by batch."""
    batches = parquet.iter_batches(_BATCH_ROWS, columns=list(names))
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            columns = [_values(batch.column(name)) for name in names]
        except _errors() as error:
            raise DataError(f"{where}: damaged: {_first_line(error)}") from None
        yield columns


def _values(column: Any) -> list[Any]:
    """Return a column as a list. Rows of one dictionary entry share one value, however long it is."""
    if not hasattr(column, "dictionary"):
        return list(column.to_pylist())
    entries = column.dictionary.to_pylist()
    return [None if index is None else entries[index] for index in column.indices.to_pylist()]
