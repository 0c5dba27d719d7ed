"""A scoring job: an engine scores a file in chunks, and a journal lets an interrupted job continue.

Chunks are counted from the start of the file. So an interrupted job has the batches, and the last digits of the answers, of an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import q8trt
from q8trt.engine.manifest import MANIFEST_FILE
from q8trt.errors import DataError, InterruptedRunError
from q8trt.files import exclusive, sha256
from q8trt.inference.files.columns import Columns, Reply, choose_columns
from q8trt.inference.files.config import ScoringConfig
from q8trt.inference.files.outputs import Outputs
from q8trt.inference.files.places import check_places
from q8trt.inference.files.records import Record, Records
from q8trt.inference.files.scorer import Outcome, RowScorer

if TYPE_CHECKING:
    from q8trt.inference import Engine

#: Maximum bytes of the input in a chunk, so that long rows do not fill the memory.
_CHUNK_BYTES = 16 * 2**20
#: Minimum seconds between two writes of the journal. A flush to the disk takes as long as a chunk of a fast engine.
_NOTE_SECONDS = 0.5
_CONTINUES = "the same command continues from there"


@dataclass(frozen=True)
class JobProgress:
    """The progress of a job.

    Attributes:
        rows: rows scored so far.
        resumed: rows of `rows` that an earlier run scored.
        rejected: rows that could not be scored so far.
        done: finished share of the file, from 0 to 1.
        already: share of the file that an earlier run finished.
        seconds: seconds since this run began.
    """

    rows: int
    resumed: int
    rejected: int
    done: float
    already: float
    seconds: float

    @property
    def rows_per_s(self) -> float:
        """Rows per second that this run scored."""
        return (self.rows - self.resumed) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Estimated seconds to the end, from the share of the file that this run finished."""
        return (1 - self.done) * self.seconds / max(self.done - self.already, 1e-9)


@dataclass(frozen=True)
class Summary(JobProgress):
    """A finished job.

    Attributes:
        output: file of the answers; it is not written if every row was rejected.
        rejected_file: file of the rows that could not be scored; None if there are none.
        first_reason: line and reason of the first row that this run rejected; "" if there is none.
        texts: the text columns.
        names: the added columns.
        truncated: rows that were cut at `max_length` tokens, as in training.
        max_length: maximum tokens of an item, see `Engine.cut_length`.
        backend: name of the runtime, such as "onnxruntime".
        device: "cpu", or the GPU's name.
    """

    output: Path
    rejected_file: Path | None
    first_reason: str
    texts: tuple[str, ...]
    names: tuple[str, ...]
    truncated: int
    max_length: int
    backend: str
    device: str


def score_file(
    engine: Engine, config: ScoringConfig, on_progress: Callable[[JobProgress], None] | None = None
) -> Summary:
    """Score every row of a file.

    An unfinished job with the same input, output and engine continues. The output gets its name at the end. If every row is
    rejected, `Summary.rows` is 0 and no output is written or replaced.

    Args:
        engine: an open engine. `Summary.truncated` also counts the rows of others who use it at the same time.
        config: options of the job.
        on_progress: function that is called after each chunk.

    Raises:
        ConfigError: the output exists already, an unfinished job is different or damaged, or the job would write to a file
            that it reads or that belongs to the user.
        BusyError: another process writes to the same output.
        DataError: the input is missing or empty, has no text column, or changed meanwhile; or a file cannot be written.
        InterruptedRunError: Ctrl-C. The same call continues the job.
        BackendError: the engine refused a batch. The finished rows are saved.
    """
    records = Records(config.input, config.input_kind)
    try:
        check_places(config, engine.folder)
        columns = choose_columns(config, records.columns, engine.manifest.task, engine.manifest.head.kind)
        with exclusive(config.output):
            return _Job(engine, config, columns, records).run(on_progress or (lambda _: None))
    except OSError as error:
        raise DataError(f"{error.filename or config.output} cannot be used: {error.strerror or error}") from error
    finally:
        records.close()


class _Job:
    def __init__(self, engine: Engine, config: ScoringConfig, columns: Columns, records: Records) -> None:
        self.engine, self.config, self.columns, self.records = engine, config, columns, records
        self.scorer = RowScorer(engine, columns, config.prompt_name, config.threshold, config.null_score_diff_threshold)
        self._input = records.stat()
        self.outputs = Outputs(config)
        identity = self._identity()
        if not self.outputs.find(identity):
            self.outputs.begin(identity, *records.position)
        self._resumed, self.first_reason = self.outputs.state.rows, ""
        self._already = self._share()
        self._started = time.perf_counter()

    def run(self, on_progress: Callable[[JobProgress], None]) -> Summary:
        """Score the remaining rows, and finish the job."""
        config = self.config
        try:
            if not self.outputs.state.finished:
                self._score_all(on_progress)
            self.outputs.finish()
        except BaseException as error:
            safe = self._secure()
            if safe and isinstance(error, KeyboardInterrupt):
                raise InterruptedRunError(f"stopped after {safe}; {_CONTINUES}") from error
            if isinstance(error, OSError):
                problem = f"{error.filename or config.partial}: {error.strerror or error}"
                raise DataError(f"{problem}; {safe} are kept, and {_CONTINUES}" if safe else problem) from error
            raise
        finally:
            self.outputs.close()
        state = self.outputs.state
        return Summary(
            **vars(self._progress()), output=config.output, rejected_file=config.rejected if state.rejected else None,
            first_reason=self.first_reason, texts=self.columns.texts, names=self.columns.answers, truncated=state.truncated,
            max_length=self.engine.cut_length, backend=self.engine.backend, device=self.engine.device,
        )  # fmt: skip

    def _score_all(self, on_progress: Callable[[JobProgress], None]) -> None:
        state = self.outputs.state
        self.records.start(state.input_bytes, state.input_lines)
        noted = time.monotonic()
        if not state.output_bytes:
            self.outputs.append(self.columns.header(), b"", state.input_bytes)
        for chunk in self._chunks():
            self._score(chunk)
            self._check_input()
            if time.monotonic() - noted >= _NOTE_SECONDS:
                self.outputs.note()
                noted = time.monotonic()
            on_progress(self._progress())

    def _secure(self) -> str:
        """Write the journal, or remove the files if no row is done; return the number of saved rows as text."""
        with contextlib.suppress(OSError):  # if the disk is full, the previous journal stays
            if not self.outputs.state.begun:
                self.outputs.discard()
                return ""
            self.outputs.note()
        state = self.outputs.noted
        return f"{state.rows + state.rejected:,} rows" if state.begun else ""

    def _check_input(self) -> None:
        """Raise DataError if the input has changed since it was opened."""
        then, now = self._input, self.config.input.stat()
        if (then.st_size, then.st_mtime_ns, then.st_ino) != (now.st_size, now.st_mtime_ns, now.st_ino):
            raise DataError(f"{self.config.input} changed while it was scored; score it again with --overwrite")

    def _identity(self) -> dict[str, Any]:
        """Return everything that decides the output, under names for messages. The journal adds a hash of the input."""
        config, engine = self.config, self.engine
        limits = dataclasses.asdict(engine.limits).items()
        return {
            "q8trt version": q8trt.__version__,
            "input": [self._input.st_size, self._input.st_mtime_ns],
            "engine": sha256(engine.folder / MANIFEST_FILE),
            "backend": [engine.backend, engine.device],
            "batch size or buckets": {k: list(value) if isinstance(value, tuple) else value for k, value in limits},
            "output columns": [*self.columns.inputs, *self.columns.answers],
            "text columns": list(self.columns.texts),
            "chunk size": config.chunk_rows,
            "--safe_csv": config.safe_csv,
            **({"--prompt_name": config.prompt_name} if config.prompt_name is not None else {}),
            **({"--threshold": config.threshold} if config.threshold is not None else {}),
            **(
                {"--null_score_diff_threshold": config.null_score_diff_threshold}
                if config.null_score_diff_threshold is not None
                else {}
            ),
        }

    def _chunks(self) -> Iterator[list[Record]]:
        """Yield chunks of at most `chunk_rows` rows. A row that cannot be read has a reason."""
        chunk: list[Record] = []
        began = self.outputs.state.input_bytes
        for record in self.records:
            chunk.append(record)
            at = self.records.position[0]
            if len(chunk) == self.config.chunk_rows or at - began >= _CHUNK_BYTES:
                yield chunk
                chunk, began = [], at
        yield chunk

    def _score(self, chunk: list[Record]) -> None:
        cut, state = self.engine.truncated, self.outputs.state
        outcomes = iter(self.scorer.outcomes([record.values for record in chunk if not record.reason]))
        scored = [(each, Outcome(reason=each.reason) if each.reason else next(outcomes)) for each in chunk]
        answered = [(record.values, outcome.answer) for record, outcome in scored if outcome.answer is not None]
        bad = [dataclasses.replace(record, reason=outcome.reason) for record, outcome in scored if outcome.reason]
        written: list[tuple[Mapping[str, Any], Reply | None]] = [*answered]
        if self.columns.has_every_row:
            written = [({} if outcome.answer is None else record.values, outcome.answer) for record, outcome in scored]
        if bad:
            self.first_reason = self.first_reason or f"line {bad[0].line}: {bad[0].reason}"
        offset, number = self.records.position
        self.outputs.append(
            self.columns.lines([row for row, _ in written], [answer for _, answer in written]),
            self.columns.rejected(bad, header=not state.rejected_bytes),
            offset,
            input_lines=number,
            rows=state.rows + len(answered),
            rejected=state.rejected + len(bad),
            truncated=state.truncated + self.engine.truncated - cut,
        )

    def _share(self) -> float:
        """Return the finished share of the input, from 0 to 1."""
        return min(self.outputs.state.input_bytes / max(self._input.st_size, 1), 1.0)

    def _progress(self) -> JobProgress:
        state, seconds = self.outputs.state, time.perf_counter() - self._started
        return JobProgress(state.rows, self._resumed, state.rejected, self._share(), self._already, seconds)
