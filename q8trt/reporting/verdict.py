"""What may be concluded from a report: where INT8 is faster, and whether a gate of accuracy and speed is passed.

INT8 is called faster only where it was measured faster, on the same backend and device.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.reporting.report import Report, Row

# Even interleaved medians wobble: a difference smaller than this is not called one.
FASTER_FROM = 1.02


def verdict(report: Report) -> list[str]:
    """For each row the shapes where it is faster than FP32 (INT8: and than FP16), those where it is not, and why that may be."""
    lines: list[str] = []
    for row in report.rows:
        baseline = report.baseline(row)
        if row is baseline or not row.latencies:
            continue
        if baseline is None:
            lines.append(f"{row.name} on {row.place} has no FP32 row on the same backend and device to compare with")
            continue
        half = report.fp16_row(row) if row.precision.is_quantized else None
        said = [_compared(report, row, other) for other in (baseline, half) if other is not None]
        lines += [line for faster, slower in said for line in (faster, slower) if line]
        if row.precision.is_quantized and any(slower for _, slower in said):
            lines.append(_reasons(row))
    return lines


def _compared(report: Report, row: Row, baseline: Row) -> tuple[str, str]:
    """Two sentences, where the row is faster than the baseline and where it is not; "" for one without a shape."""
    ratio = report.ratio(row, baseline)
    speeds = {shape: speed for shape in report.shapes if (speed := ratio.speed(shape)) is not None}
    faster = ", ".join(f"{shape} ({speed:.2f}x)" for shape, speed in speeds.items() if speed >= FASTER_FROM)
    slower = ", ".join(f"{shape} ({speed:.2f}x)" for shape, speed in speeds.items() if speed < FASTER_FROM)
    than = f"faster than {baseline.name} on {row.place} at"
    return f"{row.name} is {than} {faster}" if faster else "", f"{row.name} is NOT {than} {slower}" if slower else ""


def _reasons(row: Row) -> str:
    command = shlex.join(["q8trt", "lint", *([row.folder] if row.folder else [])])
    if not row.findings:
        return f"{row.name}: the linter finds nothing in this graph that keeps TensorRT from INT8 ({command})"
    more = f" and {len(row.findings) - 1} more" if len(row.findings) > 1 else ""
    return f"{row.name}: what stands in the way on TensorRT, by the linter: {row.findings[0]}{more}; see {command}"


@dataclass(frozen=True)
class Gate:
    """What every row but FP32's must reach; None: not asked for.

    Attributes:
        max_drop: points (x100) of the main metric that may be lost against FP32: the FP32 engine of the same report, else
            what the run's torch FP32 model scored.
        min_speedup: how many times as fast as FP32 each timed shape must be, same backend and device.

    Raises:
        ConfigError: a value that is not finite, or a speedup that is not positive.
    """

    max_drop: float | None = None
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise ConfigError(f"--max_drop {self.max_drop}, expected points of the main metric, such as 1.0")
        if self.min_speedup is not None and not (math.isfinite(self.min_speedup) and self.min_speedup > 0):
            raise ConfigError(f"--min_speedup {self.min_speedup}, expected a positive factor, such as 1.5")

    def __bool__(self) -> bool:
        return self.max_drop is not None or self.min_speedup is not None

    def failures(self, report: Report) -> list[str]:
        """What of `report` does not pass, a clause each; [] when all does. What was not measured does not pass."""
        judged = [row for row in report.rows if row.precision != Precision.FP32]
        failed = [] if judged else ["no row but FP32's to judge"]
        for row in judged:
            if self.max_drop is not None:
                failed += _dropped(report, row, self.max_drop)
            if self.min_speedup is not None:
                failed += _slow(report, row, self.min_speedup)
        return failed


def reference_x100(report: Report, row: Row) -> tuple[float, str] | None:
    """The FP32 score (x100) that a drop is counted from and whose it is; None where none is known."""
    baseline = report.baseline(row)
    score = report.score_x100(baseline) if baseline else None
    if score is not None:
        return score, "the FP32 engine"
    torch = (row.fp32_metrics or {}).get(report.main_metric)
    return None if torch is None else (100 * torch, "torch FP32 as recorded in its run")


def _dropped(report: Report, row: Row, max_drop: float) -> list[str]:
    score, reference = report.score_x100(row), reference_x100(report, row)
    where = f"{row.name} on {row.place}"
    if score is None or reference is None:
        return [f"{where}: drop of {report.main_metric} unknown, for want of {'a score' if score is None else 'FP32'}"]
    drop = reference[0] - score
    if drop <= max_drop + 1e-9:  # 86.76 - 85.76 is a hair above 1
        return []
    return [
        f"{where} loses {drop:.2f} points of {report.main_metric} against {reference[1]} "
        f"({score:.2f} of {reference[0]:.2f}), more than --max_drop {max_drop:g}"
    ]


def _slow(report: Report, row: Row, min_speedup: float) -> list[str]:
    where = f"{row.name} on {row.place}"
    failed = []
    for shape in report.shapes:
        speed = report.speed(row, shape)
        if speed is None:
            failed.append(f"{where}: speed at {shape} unknown, for want of FP32 on the same backend and device")
        elif speed < min_speedup:
            failed.append(
                f"{where} is {speed:.2f}x as fast as FP32 at {shape}, less than --min_speedup {min_speedup:g}"
            )
    return failed
