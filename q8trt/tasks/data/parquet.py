"""Reading of chosen columns of Parquet files, in batches, with a limit on the memory that a small file may expand to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from q8trt import files
from q8trt.console.names import printable
from q8trt.errors import DataError
from q8trt.tasks.data.examples import require
from q8trt.tasks.data.opening import Allowance, open_data, path_name

_BATCH_ROWS = 1024
#: Bytes of a row in memory in addition to its text.
_ROW_BYTES = 64
#: Limits of the metadata that `datasets` writes about its columns.
_NOTES = files.Limits(size=16 * 2**20, depth=32, values=1_000_000)


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns. Raises DataError if pyarrow is missing, or the file is not Parquet."""
    with open_data(path) as file:
        return list(_open(file, path).schema_arrow.names)


def parquet_rows(path: Path, names: Sequence[str], nested: Collection[str] = ()) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the place of each row (``file: row 1``) and its values in the columns `names`, of which the last has the labels.

    Args:
        path: the file.
        names: the columns.
        nested: the columns of `names` with lists or structs, which become lists and dicts.

    Raises:
        DataError: the type of a column is not that of texts, labels or nested values; or the file is damaged, or expands
            beyond its `Allowance`.
    """
    where = path_name(path)
    with open_data(path) as file:
        plain = _open(file, path)
        for name in names:
            _check_type(plain.schema_arrow.field(name).type, name, where, name != names[-1], name in nested)
        texts = [name for name in names[:-1] if name not in nested]
        parquet = _open(file, path, [*texts, *([] if names[-1] in nested else _leaves(plain, names[-1]))])
        allowance = Allowance(where, path.stat().st_size)
        try:
            _check_size(parquet.metadata, names, allowance)
        except _errors() as error:
            raise DataError(f"{where}: damaged: {_first_line(error)}") from None
        number = 0
        for columns in _batches(parquet, names, where):
            counted = [
                column for name, column in zip(names, columns, strict=True) if name != names[-1] or name in nested
            ]
            allowance.spend(_ROW_BYTES * len(columns[0]) + sum(_size(value) for column in counted for value in column))
            for values in zip(*columns, strict=True):
                number += 1
                yield f"{where}: row {number}", values


def _open(file: BinaryIO, path: Path, texts: Sequence[str] = ()) -> Any:
    """Return a ``ParquetFile`` whose columns `texts` stay dictionary-encoded, as in the file, until they are read."""
    parquet = require("pyarrow.parquet", "reading Parquet")
    try:
        opened = parquet.ParquetFile(file, read_dictionary=list(texts), page_checksum_verification=True)
        opened.schema_arrow.names  # noqa: B018 - a damaged schema raises here, where errors are caught
    except _errors() as error:
        raise DataError(f"{path_name(path)}: not Parquet: {_first_line(error)}") from None
    return opened


def _errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that pyarrow raises for a damaged file; ValueError is the base of its decoding errors."""
    arrow = require("pyarrow", "reading Parquet")
    return (arrow.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError)


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), type(error).__name__))


def _size(value: Any) -> int:
    """Return the size of a value in memory: the characters of a text, and `_ROW_BYTES` more for each item of a nested one."""
    if isinstance(value, str):
        return len(value)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_ROW_BYTES + _size(each) for each in values)


def _check_type(kind: Any, column: str, where: str, is_text: bool, is_nested: bool) -> None:
    types = require("pyarrow.types", "reading Parquet")
    is_list = not is_text and not is_nested and (types.is_list(kind) or types.is_large_list(kind))
    value = kind.value_type if types.is_dictionary(kind) or is_list else kind
    tests = ["is_string", "is_large_string", "is_string_view", "is_null"]
    if is_nested:
        tests = ["is_list", "is_large_list", "is_struct"]
    elif not is_text:
        tests += ["is_integer", "is_floating", "is_decimal", "is_boolean"]
    if not any(getattr(types, test)(value) for test in tests if hasattr(types, test)):
        others = "text" if is_text else "text, numbers, true and false, or lists of them"
        expected = "lists or structs" if is_nested else others
        raise DataError(f"{where}: column {column!r} has the type {' '.join(str(kind).split())}, expected {expected}")


def _check_size(metadata: Any, names: Sequence[str], allowance: Allowance) -> None:
    """Raise if the file's metadata state sizes beyond the allowance, before any rows are read."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    chosen = tuple(f"{name}." for name in names)  # a nested column has leaves such as answers.text.list.element
    sizes = [
        each.total_uncompressed_size + _ROW_BYTES * (each.path_in_schema not in names) * each.num_values
        for each in columns
        if f"{each.path_in_schema}.".startswith(chosen)
    ]
    allowance.check(_ROW_BYTES * metadata.num_rows + sum(sizes))


def _leaves(parquet: Any, name: str) -> list[str]:
    """Return the paths of the values in the list column `name`; [] for a column without lists."""
    paths = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
    return [path for path in paths if path.startswith(f"{name}.")]


def _batches(parquet: Any, names: Sequence[str], where: str) -> Iterator[list[list[Any]]]:
    """Yield a list of the columns' values for each batch."""
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
    """Return a column as a list. Rows or items of lists with the same dictionary entry share one Python object."""
    if hasattr(column, "flatten") and hasattr(column, "offsets"):
        lengths = require("pyarrow.compute", "reading Parquet").list_value_length(column).to_pylist()
        items = iter(_values(column.flatten()))
        return [None if length is None else list(islice(items, length)) for length in lengths]
    if not hasattr(column, "dictionary"):
        return list(column.to_pylist())
    indices = column.indices.unique()  # those of this batch, because the dictionary may be that of the whole file
    entries = dict(zip(indices.to_pylist(), column.dictionary.take(indices).to_pylist(), strict=True))
    return [entries[index] for index in column.indices.to_pylist()]


def class_names(path: Path, column: str) -> list[str] | None:
    """Return the class names that `datasets` wrote for the ids in a column or in its lists; None if the file has none.

    They are in the schema's metadata under "huggingface", in the features of the columns.
    """
    with open_data(path) as file:
        metadata = _open(file, path).schema_arrow.metadata or {}
    try:
        feature = files.parse_json(metadata.get(b"huggingface", b"{}"), _NOTES)["info"]["features"][column]
        while isinstance(feature, dict) and "names" not in feature:
            feature = feature["feature"]
        names = feature["names"]
    except (files.MalformedError, LookupError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
