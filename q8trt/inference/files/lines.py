"""The physical lines of a file, read one at a time; after each it is known how many lines and bytes were read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

#: A line, or a record of several, that is longer than this is no text to score; it bounds what is held in memory, bytes.
LONGEST = 4 * 2**20
_BOM = b"\xef\xbb\xbf"


class TooLongError(ValueError):
    """A line or a record of more than `LONGEST` bytes."""


class Lines:
    """Iterates over the lines of a UTF-8 file, line ends included. A byte order mark is left out.

    Only a newline ends a line: texts hold other characters that Python's own text files cut at.

    Args:
        path: the file, which must be seekable.
        offset: bytes to begin behind, the end of a line.
        number: lines before `offset`.

    Attributes:
        offset: bytes read.
        number: lines read.
    """

    def __init__(self, path: Path, offset: int = 0, number: int = 0) -> None:
        self._file: BinaryIO = path.open("rb")
        if offset == 0 and self._file.read(len(_BOM)) == _BOM:
            offset = len(_BOM)
        self._file.seek(offset)
        self.offset, self.number = offset, number
        self.begin()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def stat(self) -> os.stat_result:
        """Return the size, times and inode of the open file."""
        return os.fstat(self._file.fileno())

    def begin(self) -> None:
        """What is read from here on belongs to one record."""
        self._start = (self.offset, self.number)
        self._parts: list[bytes] = []

    @property
    def taken(self) -> bytes:
        """What was read since `begin`."""
        return b"".join(self._parts)

    def back_to_one(self) -> None:
        """Read again, and only the first line of the record: what follows it may be sound."""
        self.offset, self.number = self._start
        self._file.seek(self.offset)
        line = self._file.readline(LONGEST)
        self._parts, size = [line], len(line)
        while line and not line.endswith(b"\n"):
            line = self._file.readline(LONGEST)
            size += len(line)
        self.offset, self.number = self.offset + size, self.number + 1

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        """The next line. Raises UnicodeDecodeError and TooLongError; the record then needs `back_to_one`."""
        line = self._file.readline(LONGEST)
        if not line:
            raise StopIteration
        self._parts.append(line)
        self.offset, self.number = self.offset + len(line), self.number + 1
        if self.offset - self._start[0] >= LONGEST:
            raise TooLongError(f"longer than {LONGEST // 2**20} MiB")
        return line.decode("utf-8")
