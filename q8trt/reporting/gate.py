"""A gate of accuracy and speed that a benchmark passes or not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from q8trt.console.options import option
from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.reporting.formats import enumeration
from q8trt.reporting.measurements import Measurements, Row
from q8trt.reporting.table import Phrase
from q8trt.tasks.metrics import direction


@dataclass(frozen=True)
class Gate:
    """The bounds that every INT8 row must keep, or every FP16 row of a report without INT8.

    A row is compared with the FP32 row of the same report on the same backend and device. If that row has no score, the drop
    is measured from the score of torch FP32 that the run recorded.

    Raises:
        ConfigError: a value is not finite, or the speedup is not positive.
    """

    max_drop: float | None = option(
        None,
        "points (x100) of the main metric that a row may lose against FP32, measured on the FP32 engine or else in torch",
        metavar="X",
    )
    min_speedup: float | None = option(
        None, "speed relative to FP32 that a row must reach at each timed shape", metavar="X"
    )

    def __post_init__(self) -> None:
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise ConfigError(f"--max_drop {self.max_drop}, expected points of the main metric, such as 1.0")
        if self.min_speedup is not None and not (math.isfinite(self.min_speedup) and self.min_speedup > 0):
            raise ConfigError(f"--min_speedup {self.min_speedup}, expected a positive factor, such as 1.5")

    def __bool__(self) -> bool:
        return self.max_drop is not None or self.min_speedup is not None

    def failures(self, report: Measurements) -> list[str]:
        """Return a clause for each requirement that `report` misses. A figure that was not measured is a miss."""
        judged = _judged(report)
        failed = [] if judged else ["the report has only FP32 rows, and no row to judge"]
        for row in judged:
            if self.max_drop is not None:
                failed += _dropped(report, row, self.max_drop)
            if self.min_speedup is not None:
                failed += _slow(report, row, self.min_speedup)
        return failed


@dataclass(frozen=True)
class GateResult:
    """A gate's judgment of a report. `failures` has a clause for each requirement that is missed."""

    gate: Gate
    metric: str
    failures: tuple[str, ...]

    @classmethod
    def of(cls, gate: Gate, report: Measurements) -> GateResult:
        """Judge a report."""
        return cls(gate, report.main_metric, tuple(gate.failures(report)))

    @property
    def passed(self) -> bool:
        """True if no requirement is missed."""
        return not self.failures

    @property
    def judgment(self) -> Phrase:
        """``"Gate passed"`` or ``"Gate not passed"``."""
        return Phrase("Gate passed", "good") if self.passed else Phrase("Gate not passed", "bad")

    @property
    def requirements(self) -> str:
        """``"at most 1 point of pearson lost against FP32 and at least 1.5x as fast as FP32 at each shape"``."""
        parts, gate = [], self.gate
        if gate.max_drop is not None:
            unit = "point" if gate.max_drop == 1 else "points"
            parts.append(f"at most {gate.max_drop:g} {unit} of {self.metric} lost against FP32")
        if gate.min_speedup is not None:
            parts.append(f"at least {gate.min_speedup:g}x as fast as FP32 at each shape")
        return enumeration(parts)


def _judged(report: Measurements) -> list[Row]:
    quantized = [row for row in report.rows if row.precision.is_quantized]
    return quantized or [row for row in report.rows if row.precision != Precision.FP32]


def _reference_x100(report: Measurements, row: Row) -> tuple[float, str] | None:
    """Return the FP32 score (x100) from which a drop is measured, and its source; None if no score is known."""
    baseline = report.baseline(row)
    if baseline and (score := report.score_x100(baseline)) is not None:
        return score, "the FP32 engine"
    torch = report.torch_fp32_x100(row)
    return None if torch is None else (torch, "torch FP32 as recorded in its run")


def _dropped(report: Measurements, row: Row, max_drop: float) -> list[str]:
    score, reference = report.score_x100(row), _reference_x100(report, row)
    where = f"{row.name} on {row.place}"
    if score is None or reference is None:
        return [
            f"{where}: drop of {report.main_metric} is unknown: {'the row' if score is None else 'FP32'} has no score"
        ]
    drop = direction(report.main_metric) * (reference[0] - score)
    if drop <= max_drop + 1e-9:  # 86.76 - 85.76 is slightly above 1 in binary
        return []
    shown = abs(round(score, 2) - round(reference[0], 2))  # the difference of the two figures in the sentence
    return [
        f"{where} loses {shown:.2f} points of {report.main_metric} against {reference[1]} "
        f"({score:.2f} of {reference[0]:.2f}), more than --max_drop {max_drop:g}"
    ]


def _slow(report: Measurements, row: Row, min_speedup: float) -> list[str]:
    where = f"{row.name} on {row.place}"
    failed = []
    for shape in report.shapes:
        speed = report.speed(row, shape)
        if speed is None:
            reason = "it computes FP16 in FP32" if row.repeats_fp32 else "no FP32 row has the same backend and device"
            failed.append(f"{where}: speed at {shape} is unknown: {reason}")
        elif speed < min_speedup:
            failed.append(
                f"{where} is {speed:.2f}x as fast as FP32 at {shape}, less than --min_speedup {min_speedup:g}"
            )
    return failed
