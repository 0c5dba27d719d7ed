"""The options of a scoring job, and the names of the files that it writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from q8trt.console.options import option
from q8trt.errors import ConfigError

INPUTS = (".csv", ".tsv", ".jsonl", ".json", ".txt")
OUTPUTS = (".csv", ".tsv", ".jsonl", ".parquet", ".npy")
#: Outputs for embeddings only. While the job runs, its rows are JSON Lines.
OF_EMBEDDINGS = (".parquet", ".npy")
#: Those of them that may also contain spans, as a list column of structs.
OF_SPANS = (".parquet",)


@dataclass(frozen=True)
class ScoringConfig:
    """Options of a scoring job. Links count as their targets.

    Attributes:
        chunk_rows: maximum rows in memory.

    Raises:
        ConfigError: an ending is unknown, `output` is `input`, or a number is out of range.
    """

    input: Path = option(
        help=".csv (quoted), .tsv (not quoted), .jsonl (one object a line) or .txt (one text a line); UTF-8",
        metavar="FILE",
    )
    output: Path = option(
        help="the same rows with their answers: .csv, .jsonl, or .tsv for a .tsv file; for embeddings .parquet (rows and a "
        "list column), .npy (float32 array) or .jsonl; for the spans of a tagger also .parquet",
        metavar="FILE",
    )
    text_columns: tuple[str, ...] | None = option(
        None,
        "the one or two text columns",
        flag="text_column_names",
        metavar="COLUMN",
        unset="those that the engine was trained on",
    )
    overwrite: bool = option(
        False,
        "replace OUTPUT and OUTPUT.rejected.csv of an earlier job; an unfinished job of the same input, engine and options "
        "still continues, and any other starts over",
    )
    prompt_name: str | None = option(
        None, "prompt that an embedding model puts before each text", metavar="NAME", unset="the model's default"
    )
    chunk_rows: int = 512
    safe_csv: bool = option(
        False,
        "put ' before cells of .csv and .tsv that a spreadsheet would run as formulas: cells that begin with = + - @, a tab "
        "or a line end, and are not numbers",
    )

    threshold: float | None = option(
        None, "probability above which a multi-label classifier assigns a label", unset="0.5"
    )

    null_score_diff_threshold: float | None = option(
        None,
        "question answering: report no answer if its score exceeds that of the best answer by more; 0 for models of SQuAD 2.0",
        unset="each question has an answer",
    )

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold {self.threshold}, expected 0 to 1")
        for name, endings in (("input", INPUTS), ("output", OUTPUTS)):
            path = Path(getattr(self, name))
            if name == "output" and os.path.islink(path):  # noqa: PTH114 - is_symlink raises for long names
                path = Path(os.path.realpath(path))
            object.__setattr__(self, name, path)
            if path.suffix.lower() not in endings:
                usual = [ending for ending in endings if ending not in OF_EMBEDDINGS]
                others = "; for embeddings also .parquet and .npy, for tags .parquet" if name == "output" else ""
                raise ConfigError(
                    f"--{name} {path} ends in {path.suffix!r}; expected one of {', '.join(usual)}{others}"
                )
        if self.output_kind == ".tsv" and self.input_kind != ".tsv":
            raise ConfigError(
                f"--output {self.output}: texts may contain tabs, and TSV has no quotes; use .csv or .jsonl"
            )
        if os.path.realpath(self.input) == os.path.realpath(self.output):
            raise ConfigError(f"--output {self.output} is the input; give another name")
        if self.chunk_rows < 1:
            raise ConfigError(f"chunk_rows must be 1 or more, got {self.chunk_rows}")

    @property
    def input_kind(self) -> str:
        """The ending of the input, in lower case."""
        return self.input.suffix.lower()

    @property
    def output_kind(self) -> str:
        """The ending of the output, in lower case."""
        return self.output.suffix.lower()

    @property
    def partial(self) -> Path:
        """The output of an unfinished job."""
        return _beside(self.output, ".partial")

    @property
    def rejected_partial(self) -> Path:
        """The rejected rows of an unfinished job."""
        return _beside(self.output, ".rejected.partial")

    @property
    def state(self) -> Path:
        """The journal of an unfinished job."""
        return _beside(self.output, ".state.json")

    @property
    def rejected(self) -> Path:
        """The rows that could not be scored, with their lines and reasons. The file is missing if there are none."""
        return _beside(self.output, ".rejected.csv")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
