"""`q8trt predict`: a file of rows and an engine -> the same rows with their answers; resumable, of any size."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.cli.options import Parser, say, warn

if TYPE_CHECKING:
    from q8trt.inference.files import JobProgress, ScoringConfig, Summary

#: Where stderr is a file, a line of progress each so many seconds.
_LOG_SECONDS = 30.0


def parser() -> Parser:
    """The options of the command."""
    options = Parser(
        prog="q8trt predict",
        description="Score a file of any size. The output holds the input's columns and the score of a regression, or the label "
        "and the probability of each label. Rows that cannot be scored, or whose answer is NaN, go to OUTPUT.rejected.csv, with "
        "line and reason; if those are all rows, no OUTPUT is written. The same command goes on where an earlier one was "
        "interrupted by Ctrl-C, SIGTERM or a crash.",
        epilog="example: q8trt predict --engine runs/NAME/engine --input pairs.csv --output scores.csv",
    )
    options.add_argument("--engine", required=True, metavar="DIR", help="the engine folder")
    options.add_argument(
        "--input", required=True, metavar="FILE",
        help=".csv (quoted), .tsv (not quoted), .jsonl (an object a line) or .txt (a text a line); UTF-8",
    )  # fmt: skip
    options.add_argument("--output", required=True, metavar="FILE", help=".csv, .jsonl, or .tsv for a .tsv file")
    options.add_argument(
        "--text_column_names", nargs="+", metavar="TEXT",
        help="the one or two text columns (default: those that the engine was trained on)",
    )  # fmt: skip
    options.add_argument(
        "--overwrite", action="store_true",
        help="replace OUTPUT and OUTPUT.rejected.csv of an earlier job. An unfinished job of the same input, engine and "
        "options still goes on; another one, or a damaged one, starts over",
    )  # fmt: skip
    options.add_argument(
        "--safe_csv", action="store_true",
        help="put ' before cells of .csv and .tsv that begin with = + - @, a tab or a line end and are no numbers, as a "
        "spreadsheet would run them as formulas (default: cells stay as they are)",
    )  # fmt: skip
    options.add_argument("--strict", action="store_true", help="exit with 2, when all is done, if a row was rejected")
    options.add_argument(
        "--device", choices=("cuda", "cpu"), help="where to run (default: the GPU if there is one, else the CPU)"
    )
    options.add_argument("--batch_size", type=int, default=32, metavar="N", help="rows a batch, at most (default: 32)")
    options.add_argument(
        "--buckets", metavar="N,...", help="lengths in tokens that batches are padded to, such as 32,64,128"
    )
    return options


def run(argv: list[str]) -> int:
    """Run the command."""
    args: Any = parser().parse_args(argv)
    from q8trt.console.commands import command
    from q8trt.errors import DataError, InterruptedRunError
    from q8trt.inference.files import ScoringConfig

    columns = tuple(args.text_column_names) if args.text_column_names else None
    config = ScoringConfig(
        Path(args.input), Path(args.output), columns, overwrite=args.overwrite, safe_csv=args.safe_csv
    )
    try:
        summary = _score(config, args)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error}: {command('predict', *argv)}") from error
    if summary.rejected:
        all_rows = summary.rows + summary.rejected
        text = f"{summary.rejected:,} of {all_rows:,} rows rejected, see {summary.rejected_file}"
        text += f" ({summary.first_reason})" if summary.first_reason else ""
        text += "" if summary.rows else "; no output was written"
        if args.strict or not summary.rows:
            raise DataError(text)
        warn(f"predict: warning: {text}")
    return 0


def _score(config: ScoringConfig, args: Any) -> Summary:
    """Open the engine, score the file and say what was done."""
    from q8trt.engine.shapes import parse_buckets
    from q8trt.inference import Engine
    from q8trt.inference.files import score_file

    buckets = parse_buckets(args.buckets) if args.buckets else None
    with Engine.load(args.engine, args.device, buckets=buckets, batch_size=args.batch_size) as engine:
        summary = score_file(engine, config, _Shown())
        if summary.rows or not summary.rejected:
            say(f"scores: {summary.output}  {_figures(summary)}, on {engine.backend}, {engine.device}")
            say(f"  columns scored: {', '.join(summary.texts)}; added: {', '.join(summary.names)}")
        if summary.truncated:
            say(
                f"  {summary.truncated:,} rows were longer than {engine.limits.max_length} tokens and cut, as in training"
            )
    return summary


def _figures(progress: JobProgress) -> str:
    return f"{progress.rows:,} rows, {progress.rows_per_s:,.0f} rows/s"


class _Shown:
    """Shows progress on stderr: one line that changes on a terminal, a line now and then in a file."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + _LOG_SECONDS
        self._resumed = False

    def __call__(self, progress: JobProgress) -> None:
        if progress.resumed and not self._resumed:
            warn(f"going on after {progress.resumed:,} rows of an earlier run")
        self._resumed = True
        left = progress.seconds_left
        text = f"{progress.done:4.0%}  {_figures(progress)}, {progress.rejected:,} rejected, {_clock(left)} left"
        if self._terminal:
            print(f"\r{text}\x1b[K", end="\r" if progress.done < 1 else "\n", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next and progress.done < 1:
            self._next = time.monotonic() + _LOG_SECONDS
            warn(text)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
