"""Checks that a job overwrites neither a file that it reads nor a file of the user."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from q8trt.errors import ConfigError
from q8trt.files import MalformedError, parse_json
from q8trt.files.locks import lock_path
from q8trt.inference.files.config import OF_EMBEDDINGS, ScoringConfig
from q8trt.inference.files.embeddings import holds_embeddings

#: The first line of a file of rejected rows, by which q8trt recognizes it.
REJECTED_HEADER = b"line,reason,row\n"
#: Maximum bytes of the output's name. File systems allow 255, and the temporary name of the journal is 25 bytes longer.
_LONGEST_NAME = 230
#: Maximum bytes of the first line that are read to recognize an output.
_LONGEST_HEADER = 2**20
#: The last column that a job adds, see `q8trt.inference.files.columns`.
_ANSWER = re.compile(r"'?(predicted_)?(score$|embedding$|spans$|probability_)")


def check_places(config: ScoringConfig, engine: Path) -> None:
    """Check the names of all files that a job writes, through symbolic and hard links.

    Raises:
        ConfigError: one of the files is the input or a file of the engine, the output is not a regular file, or its name is
            too long.
    """
    output = config.output
    if len(os.fsencode(output.name)) > _LONGEST_NAME:
        raise ConfigError(
            f"--output {output.name[:40]}... is too long; give a name of {_LONGEST_NAME} bytes or fewer, because the files "
            "beside it have longer names"
        )
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; give the name of a file")
    if os.path.lexists(output) and not output.is_file():
        raise ConfigError(f"--output {output} is not a regular file; give another name")
    folder = _real(output.parent)
    if _real(engine) in (folder, *folder.parents):
        raise ConfigError(f"--output {output} is inside the engine folder {engine}; give a path outside it")
    read = {config.input: "the input", **dict.fromkeys(engine.iterdir(), f"a file of the engine {engine}")}
    for written in _written(config):
        for path, role in read.items():
            if _same(written, path):
                which = "is" if written == output else f"needs the name {written} beside it, which is"
                raise ConfigError(f"--output {output} {which} {role}; give another --output")


def check_free(config: ScoringConfig, overwrite: bool) -> None:
    """Check that the output and its rejected rows replace no file of the user.

    Raises:
        ConfigError: a file of that name exists and `overwrite` is False, or q8trt did not write it.
    """
    if os.path.lexists(config.output):
        if not is_answer_file(config.output, config.output_kind):
            raise ConfigError(f"{config.output} exists and is not an output of q8trt predict; give another --output")
        if not overwrite:
            raise ConfigError(f"{config.output} exists already; give another --output, or --overwrite to replace it")
    if not os.path.lexists(config.rejected):
        return
    if not is_rejected_file(config.rejected):
        raise ConfigError(f"{config.rejected} is not a file of q8trt predict; move it away, or give another --output")
    if not overwrite:
        raise ConfigError(
            f"{config.rejected} exists already, from an earlier job; move it away, or add --overwrite to replace it"
        )


def is_answer_file(path: Path, kind: str) -> bool:
    """Return whether a file is empty or looks like the output of a job, whose last column is an answer."""
    if kind in OF_EMBEDDINGS:
        return holds_embeddings(path)
    with path.open("rb") as file:
        first = file.readline(_LONGEST_HEADER).decode("utf-8", "replace")
    if not first:
        return True
    if kind == ".jsonl":
        try:
            row = parse_json(first)
        except MalformedError:
            return False
        columns = list(row) if isinstance(row, dict) else []
    else:
        columns = next(csv.reader([first], delimiter="\t" if kind == ".tsv" else ","), [])
    return bool(columns) and _ANSWER.match(columns[-1].strip("\r\n")) is not None


def is_rejected_file(path: Path) -> bool:
    """Return whether a file begins like the rejected rows of a job."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(REJECTED_HEADER)) == REJECTED_HEADER


def _written(config: ScoringConfig) -> Iterator[Path]:
    yield from (config.output, config.partial, config.rejected_partial, config.state, config.rejected)
    yield lock_path(config.output)
    # Writing the journal removes its stale temporary files.
    prefix, endings = f".{config.state.name}.", (".tmp", ".old")
    if config.output.parent.is_dir():
        yield from (
            path
            for path in config.output.parent.iterdir()
            if path.name.startswith(prefix) and path.name.endswith(endings)
        )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:  # one of them does not exist
        return False
