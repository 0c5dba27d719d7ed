"""The options of a scoring job, and the names of the files that it writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from q8trt.errors import ConfigError

INPUTS = (".csv", ".tsv", ".jsonl", ".json", ".txt")
OUTPUTS = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class ScoringConfig:
    """The options of one job.

    Attributes:
        input: the rows. The ending names the format: .csv (quoted), .tsv (not quoted), .jsonl or .json (one object a
            line), .txt (one text a line). UTF-8.
        output: the same rows with their answers: .csv, .jsonl, or .tsv for a .tsv file. A link
            counts as what it points to.
        text_columns: the one or two columns that hold the text; None: those that the engine was trained on.
        overwrite: replace `output` and its rejected rows. An unfinished job that is another one, or is damaged, starts over.
        chunk_rows: rows that are in memory at most.
        safe_csv: put ' before cells of CSV and TSV that a spreadsheet would run as a formula.

    Raises:
        ConfigError: an ending is none of these, `output` is `input`, or a number is below 1.
    """

    input: Path
    output: Path
    text_columns: tuple[str, ...] | None = None
    overwrite: bool = False
    chunk_rows: int = 512
    safe_csv: bool = False

    def __post_init__(self) -> None:
        for name, endings in (("input", INPUTS), ("output", OUTPUTS)):
            path = Path(getattr(self, name))
            if name == "output" and os.path.islink(path):  # noqa: PTH114 - is_symlink raises for long names
                path = Path(os.path.realpath(path))
            object.__setattr__(self, name, path)
            if path.suffix.lower() not in endings:
                raise ConfigError(f"--{name} {path} ends in {path.suffix!r}; expected one of {', '.join(endings)}")
        if self.output_kind == ".tsv" and self.input_kind != ".tsv":
            raise ConfigError(f"--output {self.output}: texts may hold tabs, and TSV has no quotes; use .csv or .jsonl")
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
        """The rows that could not be scored, with their line and the reason; there is no such file if all could."""
        return _beside(self.output, ".rejected.csv")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
