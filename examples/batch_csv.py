"""A batch job over a CSV file, with progress: `q8trt predict` in five lines of one's own.

python examples/batch_csv.py runs/NAME/engine pairs.csv scores.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from q8trt import Engine, Q8TRTError
from q8trt.inference.files import JobProgress, ScoringConfig, score_file


def show(progress: JobProgress) -> None:
    """Called after each chunk of rows."""
    print(f"{progress.done:4.0%}  {progress.rows:,} rows, {progress.rows_per_s:,.0f} rows/s", file=sys.stderr)


def main() -> int:
    """Score the file; after an interruption, the same command continues the job."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    folder, source, output = map(Path, sys.argv[1:])
    try:
        with Engine.load(folder) as engine:
            summary = score_file(engine, ScoringConfig(source, output), show)
    except Q8TRTError as error:
        sys.exit(f"batch_csv: {error}")
    print(f"{summary.rows:,} rows -> {summary.output}; {summary.rejected:,} rejected, {summary.truncated:,} cut")
    return 0


if __name__ == "__main__":
    sys.exit(main())
