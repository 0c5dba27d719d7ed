"""Opening of a user's data files, with limits on lines and expansion, and errors of one line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from q8trt import files
from q8trt.console.names import printable
from q8trt.errors import DataError, nearest

#: Maximum number of bytes of a line. Training texts are shorter, and it bounds the memory for a damaged file.
LONGEST_LINE = 4 * 2**20
#: Bytes that any file may expand to, and the multiple of its size that a larger file may expand to.
EXPANSION, _EXPANSION_RATIO = 256 * 2**20, 200
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
#: Number of characters of a value, and of column names, that an error shows.
_SHOWN_CHARACTERS, _SHOWN_NAMES = 60, 20
#: Files of a folder that are compared with the name of a missing one.
_LISTED_FILES = 1_000


def shown(value: object) -> str:
    """Return ``repr(value)``, cut to fit on a line."""
    text = repr(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_CHARACTERS + 2 else f"{text[:_SHOWN_CHARACTERS]}..."


def shown_names(names: list[str]) -> str:
    """Return the first twenty names of columns, and the number of the others."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(shown, names[:_SHOWN_NAMES])) + more


def path_name(path: Path) -> str:
    """Return the path for an error: on one line, with unprintable characters escaped."""
    return printable(str(path))


def open_data(path: Path) -> BinaryIO:
    """Open a regular file. Raises DataError if it is missing, is not a regular file, or cannot be read."""
    name = path_name(path)
    try:
        return files.open_regular(path)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file{similar_name(path)}") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except files.MalformedError:
        problem = "a folder" if path.is_dir() else "not a regular file"
        raise DataError(f"{name}: is {problem}; expected a file of data") from None
    except ValueError as error:  # a NUL character in the path
        raise DataError(f"{name}: cannot be read: {error}") from None


def similar_name(path: Path) -> str:
    """Return ``" (did you mean 'train.csv'?)"`` with the nearest name in the folder of a missing file; "" if none is near."""
    try:
        files_beside = [*islice(path.parent.iterdir(), _LISTED_FILES)]
    except OSError:
        return ""
    alike = [each.name for each in files_beside if nearest(path.stem, [each.stem])]  # all may end in .csv
    return printable(nearest(path.name, alike))


def is_data_file(path: Path) -> bool:
    """Return whether `path` is a regular file; False if the system refuses access."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_gzip(file: BinaryIO) -> bool:
    """Return whether the file starts with gzip's magic number; the position is then 0."""
    start = file.read(len(_GZIP))
    file.seek(0)
    return start == _GZIP


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its newline) of a UTF-8 file, without a byte order mark.

    Only a newline ends a line, because texts contain other characters at which Python's ``splitlines`` splits.

    Raises:
        DataError: the file cannot be read, is not UTF-8, is compressed, has NUL bytes or a line beyond `LONGEST_LINE`.
    """
    name, number = path_name(path), 0
    with open_data(path) as file:
        if is_gzip(file):
            raise DataError(f"{name}: is compressed with gzip; unpack it first (gunzip)")
        while line := _read_line(file, name):
            number += 1
            if len(line) > LONGEST_LINE:
                raise DataError(f"{name}:{number}: a line of more than {LONGEST_LINE:,} bytes; expected one example")
            if number == 1:
                line = line.removeprefix(_BOM)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{name}:{number}: not UTF-8: {error.reason}; convert the file to UTF-8") from None
            if "\0" in text:
                raise DataError(f"{name}:{number}: a NUL byte; expected a text file in UTF-8")
            yield number, text


def _read_line(file: BinaryIO, name: str) -> bytes:
    try:
        return file.readline(LONGEST_LINE + 1)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None


class Allowance:
    """A limit on the memory that a file may expand to, so that a small file cannot exhaust it.

    Args:
        name: the name of the file in the error.
        size: bytes of the file on disk.
        least: bytes that any file may expand to.
    """

    def __init__(self, name: str, size: int, least: int = EXPANSION) -> None:
        self._name = name
        self._left = max(least, _EXPANSION_RATIO * size)
        self._text = f"{self._left:,} bytes, the limit for a file of {size:,} bytes"

    def spend(self, count: int) -> None:
        """Subtract `count` bytes. Raises DataError if fewer are left."""
        self.check(count)
        self._left -= count

    def check(self, count: int) -> None:
        """Raise DataError if fewer than `count` bytes are left."""
        if count > self._left:
            raise DataError(f"{self._name}: expands to more than {self._text}; it looks like a decompression bomb")
