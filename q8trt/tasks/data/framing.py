"""The framing of a TFRecord file: each record's length and bytes, each with a CRC-32C, plain or compressed with gzip."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from q8trt.errors import DataError
from q8trt.tasks.data.examples import require
from q8trt.tasks.data.opening import Allowance, is_gzip, open_data, path_name

#: Bytes of the longest record that is read; one of 512 tokens takes less than 16 KiB.
LONGEST_RECORD = 2**20
#: Bytes that any file may expand to. The checksum takes a second for 10 MiB.
_EXPANSION = 8 * 2**20
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


def records(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (where, payload) of each record; lengths and payloads have passed their checksums.

    Raises:
        DataError: no such file, or a record that is cut short, damaged, or longer than any example is.
    """
    name, number = path_name(path), 0
    with open_data(path) as file:
        allowance = Allowance(name, path.stat().st_size, _EXPANSION)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip(file) else file
        while True:
            number += 1
            where = f"{name}: record {number}"
            try:
                payload = _record(stream, where)
            except (OSError, EOFError, zlib.error) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DataError(f"{where} cannot be read ({reason}); make or copy the file again") from None
            if payload is None:
                return
            allowance.spend(len(payload))
            yield where, payload


def _record(stream: BinaryIO, where: str) -> bytes | None:
    """Return the next record, or None at the end of the file."""
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    head += _exactly(stream, _LENGTH.size - len(head), where)
    _check(head, _exactly(stream, _CHECKSUM.size, where), where)
    length = _LENGTH.unpack(head)[0]
    if length > LONGEST_RECORD:
        raise DataError(f"{where} claims {length:,} bytes, more than any example has; make or copy the file again")
    payload = _exactly(stream, length, where)
    _check(payload, _exactly(stream, _CHECKSUM.size, where), where)
    return payload


def _exactly(stream: BinaryIO, count: int, where: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise DataError(f"{where} is cut short; make or copy the file again")
    return data


def _check(data: bytes, checksum: bytes, where: str) -> None:
    """Raise DataError where `data` do not have their checksum."""
    crc = require("tensorboard.compat.tensorflow_stub.pywrap_tensorflow", "reading TFRecord").masked_crc32c(data)
    if crc != _CHECKSUM.unpack(checksum)[0]:
        raise DataError(f"{where} is damaged (its checksum does not fit); make or copy the file again")
