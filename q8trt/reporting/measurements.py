"""The figures of a benchmark.

A time is only divided by a time taken on the same backend and device; any other ratio of times is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from q8trt.engine.manifest import SAMPLE_LABEL
from q8trt.hardware.gpu import GpuState
from q8trt.quantization.precision import Precision
from q8trt.reporting.head import Head, head_of, heading
from q8trt.reporting.scores import is_drift
from q8trt.runtime.registry import find_runtime
from q8trt.runtime.timing.latency import WHAT_IS_TIMED, WHAT_IS_TIMED_ON_DEVICES, Latency
from q8trt.runtime.timing.layers import LayerTimes
from q8trt.runtime.timing.lengths import Lengths
from q8trt.tasks.data import counted

#: docs/reference/benchmark-schema.md describes it.
SCHEMA = 2


@dataclass(frozen=True)
class Parity:
    """Distance of a row's logits to those of the torch model that it was exported from, over all rows scored.

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
        name: such as ``"FP32"``, ``"PTQ INT8"``, ``"QAT INT8"``.
        place: `Runner.place`, such as ``"ONNX Runtime, CPU"``; `backend`, `device` and `precision` are the runner's as well.
        metrics: scores on this backend, as fractions; {} if nothing was scored.
        onnx_mib: size of the ONNX file with its external data, in MiB; None if there is none.
        plan_mib: size of the engine plan, in MiB; None if there is none.
        latencies: one per shape.
        torch_metrics: scores of the torch model before export, as fractions; None if they are not known.
        fp32_metrics: scores of the run's torch FP32 model on its development set; None if they are not known.
        lengths: throughput on the scored rows, with length buckets and without; None if nothing was scored.
        parity: distance to the torch model's logits; None if it was not measured.
        folder: the engine folder, without machine paths.
        model: name of the model; "" if it is not known.
        recipe: name of the quantization recipe; "" for a model without quantizers.
        run: the run that contains the engine, without machine paths; `folder` for an engine outside a run.
        findings: errors and warnings of the linter on this graph, "rule: text", the worst first; () for FP32.
        layer_times: by the backend's profiler; None if the row was not profiled.
        in_float: products and residual Adds in floating point that other layers run in INT8, by the linter.
    """

    name: str
    place: str
    backend: str
    device: str
    precision: Precision
    metrics: dict[str, float]
    onnx_mib: float | None = None
    plan_mib: float | None = None
    latencies: list[Latency] = field(default_factory=list)
    torch_metrics: dict[str, float] | None = None
    fp32_metrics: dict[str, float] | None = None
    lengths: Lengths | None = None
    parity: Parity | None = None
    folder: str = ""
    findings: tuple[str, ...] = ()
    layer_times: LayerTimes | None = None
    model: str = ""
    recipe: str = ""
    run: str = ""
    in_float: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``"ONNX Runtime, CPU, int8"``."""
        return f"{self.place}, {self.precision}"

    @property
    def device_label(self) -> str:
        """``"CPU"`` or the name of the GPU."""
        return "CPU" if self.device == "cpu" else self.device

    @property
    def is_widened(self) -> bool:
        """True if the runtime computed the FP16 parts of the graph in FP32, so the row does not measure FP16."""
        runtime = find_runtime(self.backend)
        widens = runtime is not None and runtime.capabilities.widens_half
        return widens and self.device == "cpu" and self.precision.is_half

    @property
    def repeats_fp32(self) -> bool:
        """True for an FP16 row that was computed in FP32, so its times are those of FP32."""
        return self.is_widened and not self.precision.is_quantized

    @property
    def runs_on(self) -> str:
        """The place, with "FP16 as FP32" if FP16 was computed in FP32."""
        return f"{self.place}, FP16 as FP32" if self.is_widened else self.place

    def is_comparable(self, other: Row) -> bool:
        """Return whether the times of both rows may be divided, because backend and device are the same."""
        return (self.backend, self.device) == (other.backend, other.device)

    def median_ms(self, shape: str) -> float | None:
        """Return the median latency at `shape`, such as ``"16x128"``, in ms; None if that shape was not timed."""
        return next((latency.median_ms for latency in self.latencies if latency.shape == shape), None)


@dataclass(frozen=True)
class Ratio:
    """A row's figures over its baseline's. Below 1 is faster or smaller; None means missing or not comparable.

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

    @property
    def speeds(self) -> dict[str, float]:
        """Shape -> how many times as fast as the baseline, for shapes at which both were timed."""
        return {shape: 1 / ratio for shape, ratio in self.latency.items() if ratio is not None}

    def speed(self, shape: str) -> float | None:
        """Return the speed at one shape; None without a comparable figure."""
        return self.speeds.get(shape)


def _quotient(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


@dataclass(frozen=True)
class Measurements:
    """The figures of a benchmark on one split of one task.

    Attributes:
        task: official spelling, such as ``"STS-B"``; `split` such as ``"dev"``.
        data_source: source of the rows for readers, without an absolute path.
        is_sample: whether the data are the built-in sample, which then labels every score.
        rows_evaluated: number of rows scored.
        questions_evaluated: number of questions whose windows the rows are; None for rows that are not windows.
        data_fingerprint: hash of the rows scored.
        main_metric: the metric of the tables; a key of ``Row.metrics``.
        rows: one per model, precision and device; the first FP32 row of a backend and device is its baseline.
        provenance: see `q8trt.hardware.provenance.provenance`.
        gpus: the machine's GPUs as they were right after timing; [] without a driver.
        notes: remarks; `Report.all_notes` adds those that follow from the rows.
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
    gpus: list[GpuState] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA
    questions_evaluated: int | None = None

    @property
    def is_drift(self) -> bool:
        """True if the rows have no labels, so `main_metric` compares with the FP32 model."""
        return is_drift(self.main_metric)

    @property
    def title(self) -> str:
        """``"STS-B dev, 1500 rows, <source>"``, or ``"STS-B, timing only"``; the built-in sample is called "not GLUE"."""
        if not self.rows_evaluated:
            return f"{self.task}, timing only"
        return f"{self.task} {self.split}, {counted(self.rows_evaluated, self.questions_evaluated)}, {self.data_label}"

    @property
    def head(self) -> Head:
        """The model, data, device and backend of the figures."""
        return head_of(self.rows, self.title, self.provenance)

    @property
    def heading(self) -> str:
        """``"minilm on STS-B"``, or `title` if no model is known; the built-in sample is called "not GLUE"."""
        models = self.head.models
        return heading(models, self.task, self.is_sample) if models else self.title

    @property
    def data_label(self) -> str:
        """`data_source`, or ``"built-in sample, not GLUE"``."""
        return SAMPLE_LABEL if self.is_sample else self.data_source

    @property
    def shapes(self) -> list[str]:
        """Every timed shape, ``"16x128"``, in order of first appearance."""
        return list(dict.fromkeys(latency.shape for row in self.rows for latency in row.latencies))

    @property
    def largest_shape(self) -> str:
        """The timed shape with the most tokens; "" if none was timed."""
        latencies = [latency for row in self.rows for latency in row.latencies]
        return max(latencies, key=lambda each: each.batch * each.sequence).shape if latencies else ""

    @property
    def what_is_timed(self) -> str:
        """The definition of the latencies, for each clock that timed a row."""
        clocks = {latency.clock for row in self.rows for latency in row.latencies}
        return "; for rows without device timings, ".join(
            text
            for clock, text in (("device", WHAT_IS_TIMED_ON_DEVICES), ("host", WHAT_IS_TIMED))
            if clock in clocks or (clock == "host" and not clocks)
        )

    @property
    def places(self) -> list[str]:
        """Every backend and device of the rows, ``"ONNX Runtime, CPU"``, in order of first appearance."""
        return list(dict.fromkeys(row.place for row in self.rows))

    @property
    def origin(self) -> dict[str, Any]:
        """Provenance of the data, then of the report."""
        return {"data": self.data_label, "data_fingerprint": self.data_fingerprint, **self.provenance}

    def baseline(self, row: Row) -> Row | None:
        """Return the first FP32 row on the backend and device of `row`; None when there is none."""
        return next(
            (other for other in self.rows if other.precision == Precision.FP32 and row.is_comparable(other)), None
        )

    def fp16_row(self, row: Row) -> Row | None:
        """Return the first row on the backend and device of `row` that measures FP16; None when there is none."""
        rows = (other for other in self.rows if other.precision == Precision.FP16 and row.is_comparable(other))
        return next((other for other in rows if not other.is_widened), None)

    def score_x100(self, row: Row) -> float | None:
        """Return the main metric of `row` times 100; None if it was not scored."""
        score = row.metrics.get(self.main_metric)
        return None if score is None else 100 * score

    def score_delta_x100(self, row: Row, baseline: Row | None = None) -> float | None:
        """Return `score_x100` minus that of `baseline`, by default `baseline(row)`; None if either is missing."""
        baseline = baseline or self.baseline(row)
        score, base = self.score_x100(row), self.score_x100(baseline) if baseline else None
        return None if score is None or base is None else score - base

    def ratio(self, row: Row, baseline: Row) -> Ratio:
        """Return `row` over `baseline`.

        Times and plan sizes are None if backend or device differ, and times also if `row` repeats FP32.
        """
        comparable = row.is_comparable(baseline)
        is_timed = comparable and not row.repeats_fp32
        return Ratio(
            row=row.name,
            baseline=baseline.name,
            latency={
                shape: _quotient(row.median_ms(shape), baseline.median_ms(shape)) if is_timed else None
                for shape in self.shapes
            },
            onnx_size=_quotient(row.onnx_mib, baseline.onnx_mib),
            plan_size=_quotient(row.plan_mib, baseline.plan_mib) if comparable else None,
        )

    def speed(self, row: Row, shape: str) -> float | None:
        """Return the speed of `row` at `shape` relative to its baseline; None without a comparable figure."""
        baseline = self.baseline(row)
        return self.ratio(row, baseline).speed(shape) if baseline else None

    def torch_fp32_x100(self, row: Row) -> float | None:
        """Return the main metric (x100) of the torch FP32 model as the run of `row` recorded it; None if it did not."""
        score = (row.fp32_metrics or {}).get(self.main_metric)
        return None if score is None else 100 * score
