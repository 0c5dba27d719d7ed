"""Seals of folders: `hashes.json` contains the size and SHA-256 of every other file and is written last.

A folder without a seal is incomplete, or was not written by this version of q8trt. A folder with a seal is read only if its
files match the seal. A seal detects damage. It is not a signature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from q8trt.files.atomic import finish_folder, sha256, write_json
from q8trt.files.decoding import MalformedError, decode, read_json

SEAL_FILE = "hashes.json"
_FORMAT = 1


@dataclass(frozen=True)
class _File:
    """A file's entry in the seal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Seal:
    """The contents of `SEAL_FILE`; `files` maps paths relative to the folder to their entries."""

    format: int
    files: dict[str, _File]


def write_seal(folder: str | Path) -> None:
    """Give the files in `folder` ordinary permissions, flush them to the disk, and write the seal atomically."""
    folder = Path(folder)
    finish_folder(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    entries = {
        name: _File((folder / name).stat().st_size, sha256(folder / name)) for name in names if name != SEAL_FILE
    }
    write_json(folder / SEAL_FILE, dataclasses.asdict(_Seal(_FORMAT, entries)))


def has_seal(folder: str | Path) -> bool:
    """Return whether `folder` has a seal, which may be damaged."""
    return (Path(folder) / SEAL_FILE).exists()


def find_damage(folder: str | Path, is_read: Callable[[str], bool] = lambda name: True) -> str:
    """Return a description of the first difference between a folder and its seal; "" if they match.

    Messages print the description after the folder's name and a slash.

    Args:
        folder: the folder. Files that the seal does not list are not compared.
        is_read: predicate for the names, relative to the folder, of the files to compare.

    Raises:
        OSError: a file exists but cannot be read.
    """
    folder = Path(folder)
    try:
        seal = decode(_Seal, read_json(folder / SEAL_FILE))
    except FileNotFoundError:
        return f"{SEAL_FILE} is missing, so the folder was not written to its end or is of an earlier version"
    except MalformedError as error:
        return f"{SEAL_FILE} is damaged: {error}"
    if seal.format != _FORMAT:
        return f"{SEAL_FILE} has format {seal.format}, expected {_FORMAT}"
    differences = (_difference(folder, name, entry) for name, entry in seal.files.items() if is_read(name))
    return next((difference for difference in differences if difference), "")


def _difference(folder: Path, name: str, expected: _File) -> str:
    """Return a description of the difference between the file `name` and its entry; "" if they match."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\0" in name:
        return f"{SEAL_FILE} is damaged: it names {name!r}, which is outside the folder"
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{name} is damaged: it has {size:,} bytes, {SEAL_FILE} says {expected.bytes:,}"
    if sha256(path) != expected.sha256:
        return f"{name} is damaged: its SHA-256 is not the one in {SEAL_FILE}"
    return ""
