"""One file through an engine: chunk by chunk, each noted when it is on disk, so that an interrupted job goes on from there.

A chunk is a fixed number of rows from the beginning of the file, whatever happened in between: so the batches, and with
them the last digits of the answers, are those of a job that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.engine.manifest import MANIFEST_FILE
from q8trt.errors import ConfigError, DataError, InterruptedRunError
from q8trt.files import MalformedError, decode, read_json, sha256, write_json
from q8trt.scoring.config import ScoringConfig
from q8trt.scoring.layout import Layout, csv_line, make_layout
from q8trt.scoring.records import Record, Records

if TYPE_CHECKING:
    from q8trt.app import Engine

_FORMAT = 1
#: A chunk ends here as well, so that long rows do not fill the memory, bytes of the input.
_CHUNK_BYTES = 16 * 2**20
#: How much of a rejected row is quoted, characters.
_QUOTED = 2000


@dataclass(frozen=True)
class State:
    """``.state.json``: how far a job is, and what job it is.

    Attributes:
        job: what must be the same for the job to go on: the input, the engine, and what its answers depend on.
        input_bytes: of the input that are done, `input_lines` of it in lines.
        output_bytes: of the unfinished output that are sound, `rejected_bytes` of the rejected rows.
        rows: scored so far; `rejected` and `truncated` (longer than the engine takes) likewise.
    """

    job: dict[str, Any]
    input_bytes: int = 0
    input_lines: int = 0
    output_bytes: int = 0
    rejected_bytes: int = 0
    rows: int = 0
    rejected: int = 0
    truncated: int = 0
    format: int = _FORMAT


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        rows: scored so far; of these `resumed` by an earlier run. `rejected` are those that could not be.
        done: share of the file, 0 to 1; `already` of it by an earlier run.
        seconds: since this run began.
    """

    rows: int
    resumed: int
    rejected: int
    done: float
    already: float
    seconds: float

    @property
    def rows_per_s(self) -> float:
        """Rows that this run scored, a second."""
        return (self.rows - self.resumed) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """By the share of the file that this run did so far."""
        return (1 - self.done) * self.seconds / max(self.done - self.already, 1e-9)


@dataclass(frozen=True)
class Summary(Progress):
    """A finished job.

    Attributes:
        output: the answers.
        rejected_file: the rows that could not be scored; None where there are none.
        first_reason: of the first rejected row that this run saw, with its line; "" where there is none.
        names: the columns that were added.
        truncated: rows that were cut at the engine's longest sequence, as in training.
    """

    output: Path
    rejected_file: Path | None
    first_reason: str
    names: tuple[str, ...]
    truncated: int


def score_file(engine: Engine, config: ScoringConfig, on_progress: Callable[[Progress], None] | None = None) -> Summary:
    """Score every row of a file.

    An unfinished job of the same input, output and engine goes on where it stopped. The answers lie under their real name
    only when all are there.

    Args:
        engine: open; nobody else uses it meanwhile, or `Summary.truncated` counts theirs too.
        config: the files.
        on_progress: called after each chunk.

    Raises:
        ConfigError: the output is there already, or an unfinished job of another kind.
        DataError: the input is missing or empty, or has no column of text.
        InterruptedRunError: Ctrl-C; the same call goes on.
        BackendError: the engine refused a batch; what was done is kept.
    """
    if config.output.is_dir():
        raise ConfigError(f"--output {config.output} is a folder; give the name of a file")
    records = Records(config.input, config.input_kind)
    try:
        task, plain = engine.manifest.task, config.input_kind == ".txt"
        layout = make_layout(config.input, config.output_kind, records.columns, task, config.text_columns, plain)
        job = _Job(engine, config, layout, records)
        return job.run(on_progress or (lambda _: None))
    finally:
        records.close()


class _Job:
    def __init__(self, engine: Engine, config: ScoringConfig, layout: Layout, records: Records) -> None:
        self.engine, self.config, self.layout, self.records = engine, config, layout, records
        self.state = self._find() or self._begin()
        self.resumed, self.first_reason = self.state.rows, ""
        self._size = max(config.input.stat().st_size, 1)
        self._already = self.state.input_bytes / self._size
        self._started = time.perf_counter()

    def run(self, on_progress: Callable[[Progress], None]) -> Summary:
        """To the end of the file."""
        config = self.config
        self.records.start(self.state.input_bytes, self.state.input_lines)
        try:
            with config.partial.open("r+b") as output:
                output.truncate(self.state.output_bytes)
                output.seek(self.state.output_bytes)
                for good, bad in self._chunks():
                    self._score(output, good, bad)
                    on_progress(Progress(**self._progress()))
            if self._identity()["input"] != self.state.job["input"]:
                raise DataError(f"{config.input} changed while it was scored; score it again with --overwrite")
        except BaseException as error:
            if not self.state.rows:
                self._remove()
            elif isinstance(error, KeyboardInterrupt):
                raise InterruptedRunError(
                    f"stopped after {self.state.rows:,} rows; the same command goes on from there"
                ) from None
            raise
        config.partial.replace(config.output)
        config.state.unlink()
        return Summary(
            **self._progress(), output=config.output, rejected_file=config.rejected if self.state.rejected else None,
            first_reason=self.first_reason, names=self.layout.names, truncated=self.state.truncated,
        )  # fmt: skip

    def _find(self) -> State | None:
        """The unfinished job that lies beside the output, if there is one."""
        config = self.config
        if config.overwrite:
            return None
        if not config.partial.is_file() or not config.state.is_file():
            if config.output.exists():
                raise ConfigError(f"{config.output} is there already; give another --output, or --overwrite")
            return None
        try:
            state = decode(State, read_json(config.state))
        except (MalformedError, OSError, ValueError):
            raise ConfigError(f"{config.state} cannot be read; start anew with --overwrite") from None
        different = [name for name, value in self._identity().items() if state.job.get(name) != value]
        if state.format != _FORMAT:
            different = ["q8trt"]
        if different:
            raise ConfigError(
                f"{config.partial} is unfinished, and of a job with another {different[0]}; finish that one first, or start "
                "anew with --overwrite"
            )
        sizes = [(config.partial, state.output_bytes), (config.rejected, state.rejected_bytes)]
        for path, size in sizes:
            if size and (not path.is_file() or path.stat().st_size < size):
                raise ConfigError(f"{path} is shorter than {config.state.name} says; start anew with --overwrite")
        return state

    def _begin(self) -> State:
        """Write the header of the output, and note that nothing is done."""
        config, header = self.config, self.layout.header()
        config.output.parent.mkdir(parents=True, exist_ok=True)
        self._remove()
        config.partial.write_bytes(header)
        offset, number = self.records.position
        state = State(self._identity(), offset, number, len(header))
        write_json(config.state, dataclasses.asdict(state))
        return state

    def _remove(self) -> None:
        for path in (self.config.state, self.config.partial, self.config.rejected):
            path.unlink(missing_ok=True)

    def _identity(self) -> dict[str, Any]:
        """What the output depends on, by the names that a user knows."""
        config, engine, told = self.config, self.engine, self.config.input.stat()
        limits = dataclasses.asdict(engine.limits)
        return {
            "input": [told.st_size, told.st_mtime_ns],
            "engine": sha256(engine.folder / MANIFEST_FILE),
            "backend": [engine.backend, engine.device],
            "batch size or buckets": {
                name: list(value) if isinstance(value, tuple) else value for name, value in limits.items()
            },
            "output columns": [*self.layout.columns, *self.layout.names],
            "text columns": list(self.layout.texts),
            "chunk size": config.chunk_rows,
        }

    def _chunks(self) -> Iterator[tuple[list[Mapping[str, Any]], list[Record]]]:
        """Rows to score, and those that cannot be, `chunk_rows` together or fewer."""
        good: list[Mapping[str, Any]] = []
        bad: list[Record] = []
        began = self.state.input_bytes
        for record in self.records:
            reason = record.reason or self.layout.reason(record.values)
            if reason:
                bad.append(dataclasses.replace(record, reason=reason))
            else:
                good.append(record.values)
            at = self.records.position[0]
            if len(good) + len(bad) == self.config.chunk_rows or at - began >= _CHUNK_BYTES:
                yield good, bad
                good, bad, began = [], [], at
        yield good, bad

    def _score(self, output: Any, good: Sequence[Mapping[str, Any]], bad: Sequence[Record]) -> None:
        """One chunk: answers and rejected rows onto the disk, then the note that they are there."""
        cut = self.engine.truncated
        answers = self.engine.predict([self.layout.text(values) for values in good]) if good else []
        output.write(self.layout.lines(good, answers))
        output.flush()
        offset, number = self.records.position
        self.state = dataclasses.replace(
            self.state,
            input_bytes=offset,
            input_lines=number,
            output_bytes=output.tell(),
            rejected_bytes=self._reject(bad),
            rows=self.state.rows + len(good),
            rejected=self.state.rejected + len(bad),
            truncated=self.state.truncated + self.engine.truncated - cut,
        )
        write_json(self.config.state, dataclasses.asdict(self.state))

    def _reject(self, bad: Sequence[Record]) -> int:
        """Add to the rejected rows; returns their bytes."""
        size = self.state.rejected_bytes
        if not bad:
            return size
        self.first_reason = self.first_reason or f"line {bad[0].line}: {bad[0].reason}"
        lines = [] if size else [csv_line(["line", "reason", "row"])]
        lines += [
            csv_line([each.line, each.reason, each.raw.decode("utf-8", "replace").rstrip("\r\n")[:_QUOTED]])
            for each in bad
        ]
        with self.config.rejected.open("r+b" if size else "wb") as file:
            file.truncate(size)
            file.seek(size)
            file.write(b"".join(lines))
            return file.tell()

    def _progress(self) -> dict[str, Any]:
        return {
            "rows": self.state.rows,
            "resumed": self.resumed,
            "rejected": self.state.rejected,
            "done": min(self.state.input_bytes / self._size, 1.0),
            "already": self._already,
            "seconds": time.perf_counter() - self._started,
        }
