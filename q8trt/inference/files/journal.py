"""``.state.json``, the journal of an unfinished job: its progress, with a hash of all that it read and wrote.

A job goes on only if the input, the partial output and the rejected rows are, up to the byte, those of the journal.
Damage of any of the four files is an error and never another output.
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
#: Parts of every format's journal. A file with one of them is a journal, sound or damaged.
_KEYS = (b'{\n  "job": {', b'"input_bytes"', b'"output_bytes"', b'"rejected_bytes"', b'"input_lines"')
_EMPTY = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class State:
    """The content of ``.state.json``.

    Attributes:
        job: the facts that must not change for the job to go on: the input, the engine and what its answers depend on.
        replaces: whether the job may replace an output of an earlier one.
        input_bytes: bytes of the input that are done, in `input_lines` lines.
        output_bytes: sound bytes of the partial output, header included; 0 before the header is written.
        rejected_bytes: sound bytes of the rejected rows.
        rows: rows that were scored; `rejected` counts those that could not be, `truncated` those that were cut.
        finished: whether all rows are done, and only the renames are missing.
        checksum: the SHA-256 of all other fields.
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
        """Return whether a chunk is done."""
        return bool(self.rows or self.rejected)

    @property
    def without_answers(self) -> bool:
        """Return whether every row was rejected."""
        return bool(self.rejected and not self.rows)


def write_state(path: Path, state: State) -> None:
    """Write the journal with its checksum, whole or not at all."""
    write_json(path, dataclasses.asdict(dataclasses.replace(state, checksum=_checksum(state))))


def read_state(path: Path) -> State:
    """Read a journal.

    Raises:
        ForeignError: the file is not a journal.
        ConfigError: it is damaged, or of another version of q8trt.
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
    """A file has the name of one that a job writes, and q8trt did not write it."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not a file of q8trt predict; move it away, or give another --output")


def _checksum(state: State) -> str:
    values = dataclasses.asdict(dataclasses.replace(state, checksum=""))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
