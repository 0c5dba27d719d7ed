"""The journal of an unfinished job, ``.state.json``: its progress, and hashes of everything that it read and wrote.

A job continues only if the input, the partial output and the rejected rows have the hashes in the journal. Damage of any of the
four files is an error and never a wrong output.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from q8trt.errors import ConfigError
from q8trt.files import Limits, MalformedError, decode, parse_json, read_limited, write_json

_FORMAT = 2
_LIMITS = Limits(size=16 * 2**20, depth=16, values=100_000)
#: Parts of the journals of all formats. A file with one of them is a journal, which may be damaged.
_KEYS = (b'{\n  "job": {', b'"input_bytes"', b'"output_bytes"', b'"rejected_bytes"', b'"input_lines"')
_EMPTY = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class State:
    """The content of ``.state.json``.

    Attributes:
        job: the facts that must not change: the input, the engine, and everything else that decides the answers.
        replaces: whether the job may replace the output of an earlier job.
        input_bytes: finished bytes of the input, in `input_lines` lines.
        output_bytes: valid bytes of the partial output, including the header; 0 before the header is written.
        rejected_bytes: valid bytes of the rejected rows.
        rows: number of scored rows, of which `truncated` were cut.
        rejected: number of rows that could not be scored.
        finished: whether all rows are done, and only the renames remain.
        checksum: SHA-256 of all other fields.
    """

    job: dict[str, Any]
    replaces: bool = False
    input_bytes: int = 0
    input_lines: int = 0
    input_sha256: str = _EMPTY
    output_bytes: int = 0
    output_sha256: str = _EMPTY
    rejected_bytes: int = 0
    rejected_sha256: str = _EMPTY
    rows: int = 0
    rejected: int = 0
    truncated: int = 0
    finished: bool = False
    checksum: str = ""
    format: int = field(default=_FORMAT)

    @property
    def begun(self) -> bool:
        """True if a row is done."""
        return bool(self.rows or self.rejected)

    @property
    def without_answers(self) -> bool:
        """True if every row so far was rejected."""
        return bool(self.rejected and not self.rows)


def write_state(path: Path, state: State) -> None:
    """Write the journal with its checksum, completely or not at all."""
    write_json(path, dataclasses.asdict(dataclasses.replace(state, checksum=_checksum(state))))


def read_state(path: Path) -> State:
    """Read a journal.

    Raises:
        ForeignError: the file is not a journal.
        ConfigError: the journal is damaged, or of another version of q8trt.
    """
    try:
        data = read_limited(path, _LIMITS)
    except (OSError, MalformedError):
        raise ForeignError(path) from None
    if data and not any(key in data for key in _KEYS):
        raise ForeignError(path)
    try:
        value = parse_json(data, _LIMITS)
        if isinstance(value, dict) and value.get("format") != _FORMAT:
            raise ConfigError(f"{path} is of another version of q8trt; start over with --overwrite")
        state = decode(State, value)
        sound = state.checksum == _checksum(state)
    except (MalformedError, ValueError):
        sound = False
    if not sound:
        raise ConfigError(f"{path} is damaged; start over with --overwrite")
    return state


class ForeignError(ConfigError):
    """A file that q8trt did not write has the name of a file of the job."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not a file of q8trt predict; move it away, or give another --output")


def _checksum(state: State) -> str:
    values = dataclasses.asdict(dataclasses.replace(state, checksum=""))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
