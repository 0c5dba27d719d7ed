"""``benchmark.json`` read back: the part of a report that a comparison and a model card quote."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from q8trt.errors import DataError
from q8trt.files import MalformedError, decode, read_json
from q8trt.reporting.head import Head, device_of, head_of
from q8trt.reporting.measurements import SCHEMA


@dataclass(frozen=True)
class StoredLatency:
    """The part of a latency of ``benchmark.json`` that is read back."""

    batch: int
    sequence: int
    median_ms: float
    p99_ms: float
    samples_per_s: float
    clock: str

    @property
    def shape(self) -> str:
        """``"16x128"``: batch x sequence."""
        return f"{self.batch}x{self.sequence}"


@dataclass(frozen=True)
class StoredRow:
    """The part of a row of ``benchmark.json`` that is read back."""

    name: str
    precision: str
    backend: str
    device: str
    label: str
    folder: str
    metrics: dict[str, Any]
    latencies: list[StoredLatency]
    score_x100: float | None
    model: str = ""
    recipe: str = ""
    run: str = ""

    @property
    def place(self) -> str:
        """The label without the precision."""
        return self.label.removesuffix(f", {self.precision}")


@dataclass(frozen=True)
class StoredOrigin:
    """The part of a report's provenance that is read back."""

    date_utc: str | None = None
    git_commit: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredReport:
    """The part of ``benchmark.json`` that is read back."""

    title: str
    main_metric: str
    rows: list[StoredRow]
    provenance: StoredOrigin
    task: str | None = None
    split: str | None = None
    data_fingerprint: str | None = None
    rows_evaluated: int | None = None

    @property
    def data(self) -> tuple[str | int | None, ...]:
        """The scored rows: equal in two reports on the same data."""
        return self.task, self.split, self.data_fingerprint, self.rows_evaluated

    def machine(self, row: StoredRow) -> str:
        """Return the GPU that `row` ran on, or the name of the CPU."""
        return device_of(row.device, self.provenance.hardware)

    @property
    def head(self) -> Head:
        """The model, data, device and backend of the figures; a report of an earlier version names no model."""
        return head_of(self.rows, self.title, asdict(self.provenance))


def read_report(path: str | Path) -> StoredReport:
    """Return a report that `benchmark.py` wrote.

    Raises:
        DataError: the file is missing, damaged, not JSON, not a benchmark report, or a report of another schema.
    """
    expected = "expected a benchmark.json that benchmark.py wrote"
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist; {expected}")
    try:
        return stored_report(read_json(path), str(path))
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file ({error}); {expected}") from error


def stored_report(data: Any, path: str) -> StoredReport:
    """Return the content of ``benchmark.json`` as a report; raises as `read_report` does, with `path` in the message."""
    if (
        not isinstance(data, dict)
        or not {"schema", "rows", "provenance"} <= set(data)
        or not isinstance(data["rows"], list)
    ):
        raise DataError(f"{path} is not a benchmark report; expected a benchmark.json that benchmark.py wrote")
    if data["schema"] != SCHEMA:
        raise DataError(f"{path} has schema {data['schema']}, this q8trt reads {SCHEMA}; run benchmark.py again")
    try:
        return decode(StoredReport, data, partial=True)
    except MalformedError as error:
        raise DataError(f"{path} is damaged: {error}; run benchmark.py again") from None
