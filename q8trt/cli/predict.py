"""Score a file of any size. The output has the columns of the input and the answers of the model: a score, a label with
probabilities, an embedding, spans, or an answer with its position. Rows that cannot be scored, or whose answer is NaN, go to
OUTPUT.rejected.csv with line and reason; in a .npy file they are NaN. If all rows are rejected, no OUTPUT is written. After
Ctrl-C, SIGTERM or a crash, the same command continues the job.

example: q8trt predict --engine runs/NAME/engine --input pairs.csv --output scores.csv
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, warn
from q8trt.console.counts import plural
from q8trt.console.options import group, option
from q8trt.console.progress import LINE_SECONDS
from q8trt.engine.shapes import parse_buckets
from q8trt.inference.files.config import ScoringConfig

if TYPE_CHECKING:
    from q8trt.inference.files import JobProgress, Summary


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    engine: str = option(help="engine folder", metavar="DIR")
    strict: bool = option(False, "exit with code 2 at the end if a row was rejected")
    device: str | None = option(
        None, "device that runs the engine", choices=("cuda", "cpu"), unset="the GPU if there is one, else the CPU"
    )
    batch_size: int = option(32, "maximum rows in a batch")
    buckets: tuple[int, ...] | None = option(
        None, "lengths in tokens that batches are padded to, such as 32,64,128", metavar="N,...", read=parse_buckets
    )
    scoring: ScoringConfig = group("files")


PARSER = Parser(Options, "q8trt predict", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    from q8trt.console.commands import command
    from q8trt.errors import DataError, InterruptedRunError

    try:
        summary = _score(options)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error}: {command('predict', *argv)}") from error
    if summary.rejected:
        all_rows = summary.rows + summary.rejected
        text = f"{summary.rejected:,} of {plural(all_rows, 'row', ',')} rejected, see {summary.rejected_file}"
        text += f" ({summary.first_reason})" if summary.first_reason else ""
        text += "" if summary.rows else "; no output was written"
        text += "; their rows of the array are NaN" if summary.rows and summary.output.suffix.lower() == ".npy" else ""
        if options.strict or not summary.rows:
            raise DataError(text)
        warn(f"predict: warning: {text}")
    return 0


def _score(options: Options) -> Summary:
    """Score the file and print a summary."""
    from q8trt import api

    with _cut_texts_are_counted_later():
        summary = api.predict(
            options.engine, config=options.scoring, device=options.device, batch_size=options.batch_size,
            buckets=options.buckets, on_progress=_Shown(),
        )  # fmt: skip
    if summary.rows or not summary.rejected:
        say(f"scores: {summary.output}  {_figures(summary)}, on {summary.backend}, {summary.device}")
        say(f"  columns scored: {', '.join(summary.texts)}; added: {', '.join(summary.names)}")
    if summary.truncated:
        cut = plural(summary.truncated, "question" if "answer" in summary.names else "row", ",")
        were = "was" if summary.truncated == 1 else "were"
        say(f"  {cut} {were} longer than {summary.max_length} tokens and cut, as in training")
    return summary


@contextlib.contextmanager
def _cut_texts_are_counted_later() -> Iterator[None]:
    """Silence the engine's warning on its first cut text, because the summary has their number."""
    log = logging.getLogger("q8trt.inference.engine")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def _figures(progress: JobProgress) -> str:
    return f"{plural(progress.rows, 'row', ',')}, {progress.rows_per_s:,.0f} rows/s"


class _Shown:
    """A display of progress on stderr: one line that changes on a terminal, or a line every few seconds in a file."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + LINE_SECONDS
        self._resumed = False

    def __call__(self, progress: JobProgress) -> None:
        if progress.resumed and not self._resumed:
            warn(f"continuing after {plural(progress.resumed, 'row', ',')} of an earlier run")
        self._resumed = True
        left = progress.seconds_left
        text = f"{progress.done:4.0%}  {_figures(progress)}, {progress.rejected:,} rejected, {_clock(left)} left"
        if self._terminal:
            print(f"\r{text}\x1b[K", end="\r" if progress.done < 1 else "\n", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next and progress.done < 1:
            self._next = time.monotonic() + LINE_SECONDS
            warn(text)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
