"""Conversion of a finished job's JSON Lines with embeddings or spans to Parquet with a list column, or to a NumPy array."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.errors import MissingPackageError
from q8trt.files import atomic_file
from q8trt.hardware.packages import install_module

_COLUMN = "embedding"
_ROWS = 1024
#: Metadata of a Parquet file that q8trt wrote.
_MARK = b"q8trt"


def write_embeddings(rows: Path, output: Path) -> None:
    """Convert the JSON Lines in `rows` to `output`, .parquet or .npy, completely or not at all.

    Raises:
        MissingPackageError: `output` is Parquet, and pyarrow is not installed.
    """
    with atomic_file(output) as temporary:
        (_write_parquet if output.suffix.lower() == ".parquet" else _write_array)(rows, Path(temporary))


def holds_embeddings(path: Path) -> bool:
    """Return whether a file looks like an output of `write_embeddings`: a float32 matrix, or Parquet with q8trt's mark."""
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return array.ndim == 2 and array.dtype == np.float32
    try:
        return _MARK in (_pyarrow().parquet.read_schema(path).metadata or {})
    except (MissingPackageError, OSError, ValueError):
        return False


def _parts(rows: Path) -> Iterator[list[dict[str, Any]]]:
    with rows.open(encoding="utf-8") as lines:
        while part := [json.loads(line) for line in islice(lines, _ROWS)]:
            yield part


def _column(row: dict[str, Any]) -> str:
    """Return the name of the column of answers, which is the last one."""
    return list(row)[-1]


def _write_array(rows: Path, path: Path) -> None:
    """Write the embeddings in order, float32 (rows, dimension), with NaN for a row without an embedding."""
    count = width = 0
    for part in _parts(rows):
        count += len(part)
        width = width or next((len(vector) for row in part if (vector := row[_column(row)])), 0)
    if not count:
        with path.open("wb") as file:
            np.save(file, np.empty((0, 0), np.float32))
        return
    array = np.lib.format.open_memmap(path, "w+", np.float32, (count, width))
    done = 0
    for part in _parts(rows):
        array[done : done + len(part)] = [row[_column(row)] or [np.nan] * width for row in part]
        done += len(part)
    array.flush()


def _write_parquet(rows: Path, path: Path) -> None:
    arrow = _pyarrow()
    writer: Any = None
    try:
        for part in _parts(rows):
            last = _column(part[0])
            columns = {name: [_text(row.get(name)) for row in part] for name in part[0] if name != last}
            kind = span_type(arrow) if _are_spans(part[0][last]) else arrow.float32()
            vectors = arrow.array([row[last] for row in part], arrow.list_(kind))
            table = arrow.table({**{n: arrow.array(v, arrow.string()) for n, v in columns.items()}, last: vectors})
            if writer is None:
                writer = arrow.parquet.ParquetWriter(path, table.schema.with_metadata({_MARK: b"embeddings"}))
            writer.write_table(table.replace_schema_metadata({_MARK: b"embeddings"}))
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        empty = arrow.table({_COLUMN: arrow.array([], arrow.list_(arrow.float32()))})
        arrow.parquet.write_table(empty.replace_schema_metadata({_MARK: b"embeddings"}), path)


def _are_spans(answer: list[Any]) -> bool:
    """Return whether the answer to a row is a list of spans, which may be empty, instead of an embedding."""
    return not answer or isinstance(answer[0], dict)


def span_type(arrow: Any) -> Any:
    """Return the Arrow type of a `q8trt.inference.tagging.Span`."""
    text, number = arrow.string(), arrow.int64()
    return arrow.struct(
        [("label", text), ("start", number), ("end", number), ("text", text), ("score", arrow.float64())]
    )


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            "pyarrow, which writes Parquet, is not installed", install_module("pyarrow")
        ) from None
    return pyarrow
