"""The rows of a CSV, TSV, JSON Lines or plain text file, in order. A row that cannot be read has a reason.

`q8trt.tasks.data.tabular` reads training data: the first bad row is an error, and the file is read into memory. This module
returns bad rows with a reason, and can start to read at any row.
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
from typing import Any, BinaryIO

from q8trt.errors import DataError
from q8trt.files import Limits, MalformedError, parse_json
from q8trt.tasks.data.opening import similar_name

#: Maximum bytes of a row, which limits the memory that it needs.
LONGEST = 4 * 2**20
#: The column of a plain text file.
TEXT_COLUMN = "sentence"
_BOM = b"\xef\xbb\xbf"
_JSON_LIMITS = Limits(size=LONGEST, depth=64, values=100_000)
_HALF_PAIR = re.compile(
    rb"\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        line: number of its first line, from 1.
        raw: its bytes in the file.
        values: column -> value, a string except in JSON.
        reason: reason why the row cannot be read; "" if it can.
    """

    line: int
    raw: bytes
    values: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class Records:
    """The rows of one file.

    Args:
        path: the file.
        kind: ".csv", ".tsv", ".jsonl", ".json" or ".txt".

    Attributes:
        columns: the columns of the header; for JSON, the keys of the first object.

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
            self._lines = _Lines(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file{similar_name(path)}") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        self.path, self.kind = path, ".jsonl" if kind == ".json" else kind
        self.columns = self._header()

    def close(self) -> None:
        """Close the file."""
        self._lines.file.close()

    def stat(self) -> os.stat_result:
        """Return the size, times and inode of the open file."""
        return os.fstat(self._lines.file.fileno())

    @property
    def position(self) -> tuple[int, int]:
        """The numbers of bytes and lines that were read, up to the end of the last record."""
        return self._lines.offset, self._lines.number

    def start(self, offset: int, number: int) -> None:
        """Continue behind `offset` bytes and `number` lines, where a record ends."""
        self.close()
        self._lines = _Lines(self.path, offset, number)

    def __iter__(self) -> Iterator[Record]:
        lines = self._lines
        read = {".csv": self._csv, ".tsv": self._tsv, ".jsonl": self._json, ".txt": self._text}[self.kind]
        while True:
            lines.begin()
            line = lines.number + 1
            try:
                values = read()
            except StopIteration:
                return
            except _FieldsError as error:
                span = f" (lines {line} to {lines.number})" if lines.number > line else ""
                yield Record(line, lines.taken, reason=f"{error}{span}")
            except (csv.Error, ValueError, RecursionError) as error:  # JSON, UTF-8 and _TooLongError are ValueErrors
                # After a wrong quote, a record may include many lines, so the next record begins at the next line.
                lines.back_to_one()
                yield Record(line, lines.taken, reason=_reason(error, lines.taken))
            else:
                if values is not None:
                    yield Record(line, lines.taken, values)

    def _header(self) -> list[str]:
        """Return the columns. The next record is the first one after the header, if there is one."""
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
        twice = _duplicate(columns)
        if twice is not None:
            raise DataError(f"{self.path}:1: column {twice!r} appears twice; rename one")
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
        """Return the values of a row; None for a blank line, which is skipped, as in training."""
        if not fields:
            return None
        if len(fields) != len(self.columns):
            raise _FieldsError(f"{len(fields)} fields, expected {len(self.columns)} as in the header")
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


class _Lines:
    """An iterator over the lines of a seekable UTF-8 file with their ends, starting at byte `offset` behind `number` lines.

    Only a newline ends a line, because texts may contain other characters at which Python splits lines. A byte order mark is
    skipped.

    Attributes:
        offset: number of bytes read.
        number: number of lines read.
    """

    def __init__(self, path: Path, offset: int = 0, number: int = 0) -> None:
        self.file: BinaryIO = path.open("rb")
        if offset == 0 and self.file.read(len(_BOM)) == _BOM:
            offset = len(_BOM)
        self.file.seek(offset)
        self.offset, self.number = offset, number
        self.begin()

    def begin(self) -> None:
        """Begin a record at the next line."""
        self._start = (self.offset, self.number)
        self._parts: list[bytes] = []

    @property
    def taken(self) -> bytes:
        """The bytes read since `begin`."""
        return b"".join(self._parts)

    def back_to_one(self) -> None:
        """Read the record again, but only its first line, because the next line may begin a valid record."""
        self.offset, self.number = self._start
        self.file.seek(self.offset)
        line = self.file.readline(LONGEST)
        self._parts, size = [line], len(line)
        while line and not line.endswith(b"\n"):
            line = self.file.readline(LONGEST)
            size += len(line)
        self.offset, self.number = self.offset + size, self.number + 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        """Return the next line. After UnicodeDecodeError or _TooLongError, call `back_to_one`."""
        line = self.file.readline(LONGEST)
        if not line:
            raise StopIteration
        self._parts.append(line)
        self.offset, self.number = self.offset + len(line), self.number + 1
        if self.offset - self._start[0] >= LONGEST:
            raise _TooLongError(f"longer than {LONGEST // 2**20} MiB")
        return line.decode("utf-8")


class _TooLongError(ValueError):
    """A record of more than `LONGEST` bytes."""


class _FieldsError(ValueError):
    """A record with more or fewer fields than the header."""


def _duplicate(names: Sequence[str]) -> str | None:
    return next((name for index, name in enumerate(names) if name in names[:index]), None)


def _check_keys(pairs: Sequence[tuple[str, Any]]) -> None:
    """Raise ValueError if an object has a key twice, because parsers silently keep only one value."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"key {_duplicate([name for name, _ in pairs])!r} appears twice")


def _reason(error: Exception, line: bytes = b"") -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason}; convert the file to UTF-8"
    if isinstance(error, MalformedError):
        return "half of a surrogate pair, which is not a character" if _HALF_PAIR.search(line) else str(error)
    if isinstance(error, csv.Error):
        return f"not CSV: {str(error).partition(' - ')[0]}"
    return str(error)
