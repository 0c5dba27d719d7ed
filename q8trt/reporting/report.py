"""The figures of one benchmark as data, and what may be concluded from them.

A time is only ever divided by a time taken on the same backend and device; everywhere else the ratio is None.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from q8trt.benchmarking import WHAT_IS_TIMED, Latency

SCHEMA = 1
SAMPLE_LABEL = "built-in sample, not GLUE"
SPEEDUP_LEGEND = "speed: FP32's median time over this row's, same backend and device; above 1 is faster than FP32"
# Even interleaved medians wobble: a difference smaller than this is not called one.
FASTER_FROM = 1.02


@dataclass(frozen=True)
class Parity:
    """How far a row's logits lie from those of the torch model it was exported from, over all rows scored.

    Attributes:
        largest_logit_difference: largest absolute difference.
        mean_logit_difference: mean absolute difference.
        largest_logit: largest absolute logit of the torch model, for scale.
    """

    largest_logit_difference: float
    mean_logit_difference: float
    largest_logit: float


@dataclass(frozen=True)
class Row:
    """One model at one precision on one device.

    Attributes:
        name: what the row is, e.g. ``"FP32"``, ``"PTQ INT8"``, ``"QAT INT8"``.
        label: `Runner.label`; with `backend`, `device` and `precision` as the runner has them.
        metrics: the score on this backend, metric -> fraction; empty where nothing was scored.
        onnx_mib: size of the ONNX file with its external data, MiB; None where there is none.
        plan_mib: size of the engine plan, MiB; None where there is none.
        latencies: one per shape.
        torch_metrics: what the torch model scored before export, metric -> fraction; None where that is not known.
        eval_samples_per_s: rows scored per second of inference; None where nothing was scored.
        parity: distance to the torch model's logits; None where it was not measured.
    """

    name: str
    label: str
    backend: str
    device: str
    precision: str
    metrics: dict[str, float]
    onnx_mib: float | None = None
    plan_mib: float | None = None
    latencies: list[Latency] = field(default_factory=list)
    torch_metrics: dict[str, float] | None = None
    eval_samples_per_s: float | None = None
    parity: Parity | None = None

    @property
    def place(self) -> str:
        """``"ONNX Runtime, CPU"``: the label without the precision."""
        return self.label.removesuffix(f", {self.precision}")

    def is_comparable(self, other: Row) -> bool:
        """Whether times of the two may be divided: same backend, same device."""
        return (self.backend, self.device) == (other.backend, other.device)

    def median_ms(self, shape: str) -> float | None:
        """Median latency at `shape`, e.g. ``"16x128"``, in ms; None where that shape was not timed."""
        return next((latency.median_ms for latency in self.latencies if latency.shape == shape), None)


@dataclass(frozen=True)
class Ratio:
    """A row's figures over its baseline's: below 1 is faster or smaller, None is missing or not comparable.

    Attributes:
        row: name of the row.
        baseline: name of the baseline.
        latency: shape -> median over the baseline's median.
        onnx_size: size of the ONNX file over the baseline's.
        plan_size: size of the plan over the baseline's.
    """

    row: str
    baseline: str
    latency: dict[str, float | None]
    onnx_size: float | None
    plan_size: float | None

    def speed(self, shape: str) -> float | None:
        """How many times as fast as the baseline: the inverse of `latency`."""
        ratio = self.latency.get(shape)
        return None if ratio is None else 1 / ratio


def _quotient(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


@dataclass(frozen=True)
class Report:
    """The figures of one benchmark, on one split of one task.

    Attributes:
        task: official spelling, e.g. ``"STS-B"``; `split` e.g. ``"dev"``.
        data_source: where the rows came from, in words a report can print; no absolute path.
        is_sample: whether the data are the built-in sample, which every score is then labelled with.
        rows_evaluated: how many rows were scored.
        data_fingerprint: hash of those rows.
        main_metric: the metric of the tables; a key of ``Row.metrics``.
        rows: one per model, precision and device; the first FP32 row of a backend and device is its baseline.
        provenance: see `q8trt.provenance.provenance`.
        notes: what else a reader must know; `all_notes` adds what follows from the rows.
    """

    task: str
    split: str
    data_source: str
    is_sample: bool
    rows_evaluated: int
    data_fingerprint: str
    main_metric: str
    rows: list[Row]
    provenance: dict[str, Any]
    what_is_timed: str = WHAT_IS_TIMED
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def title(self) -> str:
        """``"STS-B dev, 1500 rows, <where from>"``; the built-in sample always says that it is no GLUE score."""
        if not self.rows_evaluated:
            return f"{self.task}, timing only"
        return f"{self.task} {self.split}, {self.rows_evaluated} rows, {self.data_label}"

    @property
    def data_label(self) -> str:
        """`data_source`, or ``"built-in sample, not GLUE"``."""
        return SAMPLE_LABEL if self.is_sample else self.data_source

    @property
    def shapes(self) -> list[str]:
        """Every timed shape, ``"16x128"``, in order of first appearance."""
        return list(dict.fromkeys(latency.shape for row in self.rows for latency in row.latencies))

    @property
    def all_notes(self) -> list[str]:
        """`notes`, the parity of each row, and a warning when no figure was taken on TensorRT."""
        notes = [*self.notes, *(_parity_note(row, row.parity) for row in self.rows if row.parity)]
        if not self.rows or any(row.backend.startswith("tensorrt") for row in self.rows):
            return notes
        places = list(dict.fromkeys(row.place for row in self.rows))
        gpus = self.provenance.get("hardware", {}).get("gpus")
        if places == ["ONNX Runtime, CPU"] and not gpus:
            return [*notes, "No GPU: figures are ONNX Runtime's on the CPU, not TensorRT's"]
        return [*notes, f"No figure was taken on TensorRT: they are those of {' and of '.join(places)}"]

    def baseline(self, row: Row) -> Row | None:
        """The first FP32 row on the backend and device of `row`; None when there is none."""
        return next((other for other in self.rows if other.precision == "fp32" and row.is_comparable(other)), None)

    def score_x100(self, row: Row) -> float | None:
        """The main metric of `row` times 100; None where it was not scored."""
        score = row.metrics.get(self.main_metric)
        return None if score is None else 100 * score

    def score_delta_x100(self, row: Row) -> float | None:
        """`score_x100` less its baseline's; None where either is missing."""
        baseline = self.baseline(row)
        score, base = self.score_x100(row), self.score_x100(baseline) if baseline else None
        return None if score is None or base is None else score - base

    def ratio(self, row: Row, baseline: Row) -> Ratio:
        """`row` over `baseline`; times and plans only when backend and device are the same."""
        comparable = row.is_comparable(baseline)
        return Ratio(
            row=row.name,
            baseline=baseline.name,
            latency={
                shape: _quotient(row.median_ms(shape), baseline.median_ms(shape)) if comparable else None
                for shape in self.shapes
            },
            onnx_size=_quotient(row.onnx_mib, baseline.onnx_mib),
            plan_size=_quotient(row.plan_mib, baseline.plan_mib) if comparable else None,
        )

    def ratios(self, baseline_row: Row) -> list[Ratio]:
        """`ratio` of each row, in order, to the one `baseline_row`."""
        return [self.ratio(row, baseline_row) for row in self.rows]

    def speed(self, row: Row, shape: str) -> float | None:
        """How many times as fast as its own baseline `row` is at `shape`; None without a comparable figure."""
        baseline = self.baseline(row)
        return self.ratio(row, baseline).speed(shape) if baseline else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. Units are in the keys; metrics are fractions, ``*_ratio`` is below 1 where faster or smaller."""
        return {
            "schema": self.schema,
            "title": self.title,
            "task": self.task,
            "split": self.split,
            "data_source": self.data_label,
            "is_sample": self.is_sample,
            "rows_evaluated": self.rows_evaluated,
            "data_fingerprint": self.data_fingerprint,
            "main_metric": self.main_metric,
            "rows": [self._row_dict(row) for row in self.rows],
            "verdict": verdict(self),
            "what_is_timed": self.what_is_timed,
            "notes": self.all_notes,
            "provenance": self.provenance,
        }

    def _row_dict(self, row: Row) -> dict[str, Any]:
        baseline = self.baseline(row)
        against = None
        if baseline:
            ratio = self.ratio(row, baseline)
            against = {
                "baseline": baseline.name,
                "score_delta_x100": self.score_delta_x100(row),
                "median_latency_ratio": ratio.latency,
                "onnx_size_ratio": ratio.onnx_size,
                "plan_size_ratio": ratio.plan_size,
            }
        return {**asdict(row), "score_x100": self.score_x100(row), "against": against}


def _parity_note(row: Row, parity: Parity) -> str:
    return (
        f"{row.name}: logits of {row.place} differ from the torch model's by at most "
        f"{parity.largest_logit_difference:.2g}, {parity.mean_logit_difference:.2g} on average "
        f"(logits reach {parity.largest_logit:.2g})"
    )


def verdict(report: Report) -> list[str]:
    """One sentence per row and shape: is it faster than FP32 *there*? Says so only where it was measured so."""
    lines = []
    for row in report.rows:
        baseline = report.baseline(row)
        if row is baseline or not row.latencies:
            continue
        if baseline is None:
            lines.append(f"{row.name} on {row.place} has no FP32 row on the same backend and device to compare with")
            continue
        for shape in report.shapes:
            speed = report.speed(row, shape)
            if speed is None:
                continue
            where = f"at {shape} on {row.place}"
            if speed >= FASTER_FROM:
                lines.append(f"{row.name} is {speed:.2f}x as fast as {baseline.name} {where}")
            else:
                lines.append(f"{row.name} is NOT faster than {baseline.name} {where} ({speed:.2f}x)")
    return lines


Column = tuple[str, str]


def _cell(value: float | None, form: str) -> str:
    """`value` formatted, ``"-"`` for None; a zero that rounding left with a minus sign loses it."""
    if value is None:
        return "-"
    text = format(value, form)
    return text.replace("-", "+" if "+" in form else "") if float(text) == 0 else text


def ms(value: float | None) -> str:
    """Milliseconds: two decimals below 100, else one; ``"-"`` for None."""
    return _cell(value, ".2f" if value is None or value < 100 else ".1f")


def x100(fraction: float | None) -> str:
    """A fraction as printed: times 100, two decimals."""
    return _cell(None if fraction is None else 100 * fraction, ".2f")


def score_cells(report: Report, row: Row) -> dict[Column, str]:
    """Score and sizes of `row`: column (two header lines) -> text."""
    return {
        (report.main_metric, "x100"): x100(row.metrics.get(report.main_metric)),
        ("vs", "FP32"): _cell(report.score_delta_x100(row), "+.2f"),
        ("ONNX", "MiB"): _cell(row.onnx_mib, ".1f"),
        ("plan", "MiB"): _cell(row.plan_mib, ".1f"),
    }


def time_cells(report: Report, row: Row, shape: str) -> tuple[str, str]:
    """Median ms at `shape`, and speed against FP32 with an ``x``."""
    speed = _cell(report.speed(row, shape), ".2f")
    return ms(row.median_ms(shape)), speed if speed == "-" else f"{speed}x"
