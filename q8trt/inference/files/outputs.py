"""The files of a job: partial output, rejected rows and journal, and the renames at the end.

The order of the writes makes a crash harmless at any time. The journal is created first and removed last. Data are flushed to the
disk before the journal counts them. The journal records the job as finished before the files get their real names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from q8trt.errors import ConfigError
from q8trt.files import sync
from q8trt.inference.files.config import OF_EMBEDDINGS, ScoringConfig
from q8trt.inference.files.embeddings import write_embeddings
from q8trt.inference.files.journal import ForeignError, State, read_state, write_state
from q8trt.inference.files.places import check_free, is_rejected_file

_BLOCK = 2**20


class Prefix:
    """The running SHA-256 of the first `size` bytes of a file."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Add `data`, the next bytes of the file, to the hash."""
        self._hash.update(data)
        self.size += len(data)

    def read(self, path: Path, size: int) -> None:
        """Add the bytes of `path` from `self.size` to `size`, or to the end of a shorter file, to the hash."""
        with path.open("rb") as file:
            file.seek(self.size)
            while self.size < size and (block := file.read(min(_BLOCK, size - self.size))):
                self.add(block)

    @property
    def sha256(self) -> str:
        """The hash of the first `size` bytes, as 64 hexadecimal digits."""
        return self._hash.hexdigest()


class Growing:
    """A file that a job appends to.

    Attributes:
        path: the file.
        prefix: its valid bytes. The bytes after them are cut off when the file is opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.prefix = path, Prefix()
        self._file: FileIO | None = None

    def append(self, data: bytes) -> None:
        """Append `data` to the valid bytes."""
        file = self._file = self._file or self._open()
        rest = memoryview(data)
        while rest:  # at a limit of the file's size, `write` writes a part, and the next call raises OSError
            rest = rest[file.write(rest) :]
        self.prefix.add(data)

    def trim(self) -> None:
        """Cut off the bytes after the valid ones, in case nothing is appended."""
        if self.path.exists():
            self._file = self._file or self._open()

    def sync(self) -> None:
        """Flush the data to the disk."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        file = FileIO(self.path, "wb", opener=lambda path, _: os.open(path, flags, 0o666))
        file.truncate(self.prefix.size)
        file.seek(self.prefix.size)
        return file


class Outputs:
    """The files that a job writes. Call `find`, and `begin` if it returns False, before the other methods.

    Attributes:
        state: the progress of the job.
        noted: the state in the journal on the disk, which `note` updates.
    """

    def __init__(self, config: ScoringConfig) -> None:
        self.config = config
        self.state = State({})
        self._read, self._answers = Prefix(), Growing(config.partial)
        self._rejected, self.noted = Growing(config.rejected_partial), self.state

    def find(self, job: Mapping[str, Any]) -> bool:
        """Load the unfinished job beside the output; return False if there is none.

        Args:
            job: everything that decides the output, under names for messages.

        Raises:
            ConfigError: the output exists, or the unfinished job is different or damaged, and `overwrite` is False; or a file
                that q8trt did not write has the name of a file of the job.
        """
        config = self.config
        try:
            state = self._sound(job)
        except ForeignError:
            raise
        except ConfigError:
            if not config.overwrite:
                raise
            state = None
        if state is None or not state.finished:
            check_free(config, config.overwrite or (state is not None and state.replaces))
        if state is None:
            return False
        self.state = dataclasses.replace(state, replaces=state.replaces or config.overwrite)
        self.noted = state
        if not state.finished:
            self._answers.trim()
            self._rejected.trim()
        return True

    def begin(self, job: Mapping[str, Any], offset: int, number: int) -> None:
        """Start a job behind the header of the input, which ends at byte `offset` and line `number`."""
        config = self.config
        config.output.parent.mkdir(parents=True, exist_ok=True)
        self.discard()
        self._read, self._answers = Prefix(), Growing(config.partial)
        self._rejected = Growing(config.rejected_partial)
        self._read.read(config.input, offset)
        self.state = State(dict(job), config.overwrite, offset, number, self._read.sha256)
        try:
            self.note()
        except BaseException:
            self.discard()
            raise

    def append(self, answers: bytes, refused: bytes, offset: int, **changes: Any) -> None:
        """Append the results for the input up to byte `offset`.

        Args:
            answers: lines of the output.
            refused: lines of the rejected rows.
            offset: bytes of the input that are finished.
            changes: other fields of the state.
        """
        self._answers.append(answers)
        if refused:
            self._rejected.append(refused)
        self._read.read(self.config.input, offset)
        good, bad, read = self._answers.prefix, self._rejected.prefix, self._read
        self.state = dataclasses.replace(
            self.state,
            input_bytes=read.size, input_sha256=read.sha256,
            output_bytes=good.size, output_sha256=good.sha256,
            rejected_bytes=bad.size, rejected_sha256=bad.sha256,
            **changes,
        )  # fmt: skip

    def note(self) -> None:
        """Flush the data to the disk, then write the journal."""
        if self.state is self.noted:
            return
        self._answers.sync()
        self._rejected.sync()
        write_state(self.config.state, self.state)
        self.noted = self.state

    def finish(self) -> None:
        """Give the files of a job their real names after all rows are done. After a crash, it can be called again.

        Raises:
            ConfigError: a file of such a name was created meanwhile, and the job may not replace it.
        """
        config, state = self.config, self.state
        if config.partial.exists():
            check_free(config, state.replaces)
        self.state = dataclasses.replace(state, finished=True)
        self.note()
        self.close()
        if config.partial.exists() and not state.without_answers:
            if config.output_kind in OF_EMBEDDINGS:
                write_embeddings(config.partial, config.output)  # `discard` removes the rows
            else:
                config.partial.replace(config.output)
        if state.rejected and config.rejected_partial.exists():
            config.rejected_partial.replace(config.rejected)
        elif not state.rejected and is_rejected_file(config.rejected):
            config.rejected.unlink()  # it belongs to an earlier job with the same output
        with contextlib.suppress(OSError):
            sync(config.output.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the files of the unfinished job, the journal last."""
        self.close()
        for path in (self.config.partial, self.config.rejected_partial, self.config.state):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        self._answers.close()
        self._rejected.close()

    def _sound(self, job: Mapping[str, Any]) -> State | None:
        """Return the state of the unfinished job after a check of its files; None if there is no such job.

        Raises:
            ConfigError: the job is different, or a file differs from the journal.
        """
        config = self.config
        if not os.path.lexists(config.state):
            for path in (config.partial, config.rejected_partial):
                if os.path.lexists(path):
                    raise ForeignError(path)
            return None
        state = read_state(config.state)
        if not state.finished and not os.path.lexists(config.partial):
            return None
        different = [name for name, value in job.items() if state.job.get(name) != value]
        self._read.read(config.input, state.input_bytes)
        if self._read.sha256 != state.input_sha256:
            different.append("input")
        if different:
            raise ConfigError(
                f"{config.partial} is unfinished, and its job has another {different[0]}; finish that job first, or start "
                "over with --overwrite"
            )
        if not state.without_answers or not state.finished:
            self._check(self._answers, config.output, state.output_bytes, state.output_sha256, state.finished)
        self._check(self._rejected, config.rejected, state.rejected_bytes, state.rejected_sha256, state.finished)
        return state

    def _check(self, file: Growing, final: Path, size: int, sha256: str, finished: bool) -> None:
        """Compare a file with the journal. The file of a finished job may already have its `final` name."""
        if not size:
            return
        if finished and not file.path.exists() and final.suffix.lower() in OF_EMBEDDINGS:
            return  # the rows were converted and then removed
        path = final if finished and not file.path.exists() else file.path
        try:
            file.prefix.read(path, size)
            longer = finished and path.stat().st_size > size
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; start over with --overwrite") from None
        if longer or file.prefix.sha256 != sha256:
            raise ConfigError(
                f"{path} differs from its record in {self.config.state.name}; start over with --overwrite"
            )
