"""The rows of a CSV, TSV, JSON Lines or plain text file, one after the other; one that cannot be read is a row with a reason.

Different from `q8trt.tasks.data.tabular`, which reads data to train on: there the first bad row is an error and a file fits into
memory; here bad rows are set aside, and reading may begin anywhere.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from q8trt.errors import DataError
from q8trt.files import Limits, MalformedError, parse_json
from q8trt.inference.files.lines import LONGEST, Lines

_JSON_LIMITS = Limits(size=LONGEST, depth=64, values=100_000)
_HALF_PAIR = re.compile(
    rb"\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
#: The column of a plain text file.
TEXT_COLUMN = "sentence"


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        line: its first physical line, from 1.
        raw: its bytes, as they stand in the file.
        values: column -> value; strings but for JSON.
        reason: why it cannot be read; "" where it can.
    """

    line: int
    raw: bytes
    values: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class Records:
    """Reads one file.

    Args:
        path: the file.
        kind: ".csv", ".tsv", ".jsonl" or ".txt".

    Attributes:
        columns: those of the header; of JSON, the keys of the first object.

    Raises:
        DataError: the file is missing or empty, or its header cannot be used.
    """

    def __init__(self, path: Path, kind: str) -> None:
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise DataError(f"{path} is a folder; give a file")
            if not stat.S_ISREG(mode):
                raise DataError(
                    f"{path} is not a regular file, and cannot be read again after an interruption; copy it to one"
                )
            self._lines = Lines(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        self.path, self.kind = path, ".jsonl" if kind == ".json" else kind
        self.columns = self._header()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def stat(self) -> os.stat_result:
        """Return the size, times and inode of the file that is open."""
        return self._lines.stat()

    @property
    def position(self) -> tuple[int, int]:
        """Bytes and lines read: the end of the record that was given last."""
        return self._lines.offset, self._lines.number

    def start(self, offset: int, number: int) -> None:
        """Go on behind `offset` bytes and `number` lines, where a record ends."""
        self._lines.close()
        self._lines = Lines(self.path, offset, number)

    def __iter__(self) -> Iterator[Record]:
        read = {".csv": self._csv, ".tsv": self._tsv, ".jsonl": self._json, ".txt": self._text}[self.kind]
        while True:
            self._lines.begin()
            line = self._lines.number + 1
            try:
                values = read()
            except StopIteration:
                return
            except _FieldsError as error:
                last = self._lines.number
                lines = f" (lines {line} to {last})" if last > line else ""
                yield Record(line, self._lines.taken, reason=f"{error}{lines}")
                continue
            except (csv.Error, ValueError, RecursionError) as error:  # JSON, UTF-8 and TooLongError are ValueErrors
                # Where a quote goes wrong, so does what follows: the next line may begin a sound record.
                self._lines.back_to_one()
                yield Record(line, self._lines.taken, reason=_reason(error, self._lines.taken))
                continue
            if values is not None:
                yield Record(line, self._lines.taken, values)

    def _header(self) -> list[str]:
        """Leaves the reader behind the header, where there is one."""
        if self.kind == ".txt":
            return [TEXT_COLUMN]
        if self.kind == ".jsonl":
            first = next((record for record in self if not record.reason), None)
            self.start(0, 0)
            return [*first.values] if first else []
        try:
            columns = self._fields()
        except StopIteration:
            columns = []
        except (csv.Error, ValueError) as error:
            raise DataError(
                f"{self.path}:1: {_reason(error)}; expected a header with the names of the columns"
            ) from error
        if not any(columns):
            raise DataError(f"{self.path}:1: empty; expected a header with the names of the columns")
        twice = next((name for index, name in enumerate(columns) if name in columns[:index]), None)
        if twice is not None:
            raise DataError(f"{self.path}:1: column {twice!r} is there twice; rename one")
        return list(columns)

    def _fields(self) -> Sequence[str]:
        if self.kind == ".tsv":
            return next(self._lines).rstrip("\r\n").split("\t")
        return next(csv.reader(self._lines, strict=True))

    def _csv(self) -> Mapping[str, Any] | None:
        return self._row(self._fields())

    def _tsv(self) -> Mapping[str, Any] | None:
        fields = self._fields()
        return self._row(fields if list(fields) != [""] else [])

    def _row(self, fields: Sequence[str]) -> Mapping[str, Any] | None:
        """None for a blank line, which is no row, as in training."""
        if not fields:
            return None
        if len(fields) != len(self.columns):
            raise _FieldsError(len(fields), len(self.columns))
        return dict(zip(self.columns, fields, strict=True))

    def _json(self) -> Mapping[str, Any] | None:
        line = next(self._lines)
        if not line.strip():
            return None
        value = parse_json(line.rstrip(), _JSON_LIMITS)
        if not isinstance(value, dict):
            raise ValueError(f"a JSON {type(value).__name__}, expected one object a line")
        json.loads(line, object_pairs_hook=_check_keys)
        return value

    def _text(self) -> Mapping[str, Any] | None:
        return {TEXT_COLUMN: next(self._lines).rstrip("\r\n")}


class _FieldsError(ValueError):
    def __init__(self, found: int, expected: int) -> None:
        super().__init__(f"{found} fields, expected {expected} as in the header")


def _check_keys(pairs: Sequence[tuple[str, Any]]) -> None:
    """Raise ValueError if an object has a key twice: parsers keep one of the values, in silence."""
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"key {twice!r} is there twice")


def _reason(error: Exception, line: bytes = b"") -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason}"
    if isinstance(error, MalformedError):
        return "half of a surrogate pair, which is no character" if _HALF_PAIR.search(line) else str(error)
    if isinstance(error, csv.Error):
        return f"not CSV: {str(error).partition(' - ')[0]}"
    return str(error)
