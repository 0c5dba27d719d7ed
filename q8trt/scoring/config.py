"""What to score, and the names of the files that a job writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from q8trt.errors import ConfigError

INPUTS = (".csv", ".tsv", ".jsonl", ".json", ".txt")
OUTPUTS = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class ScoringConfig:
    """One job.

    Attributes:
        input: rows, told apart by the ending: .csv (quoted), .tsv (not quoted), .jsonl (one object a line), .txt (one text
            a line). UTF-8.
        output: the same rows and the answers: .csv, .jsonl, or .tsv for a .tsv file.
        text_columns: the one or two columns that hold the text; None: the task's own names, else common ones.
        overwrite: replace `output`, and start anew where an unfinished job lies.
        chunk_rows: rows that are in memory, and lost by an interruption, at most.

    Raises:
        ConfigError: an ending that is none of these, one file for both, or a number below 1.
    """

    input: Path
    output: Path
    text_columns: tuple[str, ...] | None = None
    overwrite: bool = False
    chunk_rows: int = 512

    def __post_init__(self) -> None:
        for name, endings in (("input", INPUTS), ("output", OUTPUTS)):
            path = Path(getattr(self, name))
            object.__setattr__(self, name, path)
            if path.suffix.lower() not in endings:
                raise ConfigError(f"--{name} {path} ends in {path.suffix!r}; expected one of {', '.join(endings)}")
        if self.output_kind == ".tsv" and self.input_kind != ".tsv":
            raise ConfigError(f"--output {self.output}: texts may hold tabs, and TSV has no quotes; use .csv or .jsonl")
        if self.input.resolve() == self.output.resolve():
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
        """The output while it is not finished."""
        return _beside(self.output, ".partial")

    @property
    def state(self) -> Path:
        """How far an unfinished job is."""
        return _beside(self.output, ".state.json")

    @property
    def rejected(self) -> Path:
        """The rows that could not be scored, with their line and the reason; no such file where there are none."""
        return _beside(self.output, ".rejected.csv")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
