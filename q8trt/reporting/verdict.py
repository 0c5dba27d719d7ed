"""Where each row of a benchmark is faster than FP32 and FP16 on the same backend and device, and where it is not."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from q8trt.reporting.benchmark import Report, Row
from q8trt.reporting.table import Phrase

#: Even interleaved medians vary: a smaller difference is not called one.
FASTER_FROM = 1.02


@dataclass(frozen=True)
class Comparison:
    """The speed of a row relative to another one on the same backend and device.

    Attributes:
        baseline: the other row.
        speeds: shape -> how many times as fast; shapes that both rows were timed at.
    """

    baseline: Row
    speeds: Mapping[str, float]

    @property
    def faster(self) -> dict[str, float]:
        """The shapes where the row is faster."""
        return {shape: speed for shape, speed in self.speeds.items() if speed >= FASTER_FROM}

    @property
    def slower(self) -> dict[str, float]:
        """The shapes where it is not."""
        return {shape: speed for shape, speed in self.speeds.items() if speed < FASTER_FROM}


@dataclass(frozen=True)
class Verdict:
    """A timed row and its comparisons, with FP32 first; none where no FP32 row has the same backend and device."""

    row: Row
    comparisons: tuple[Comparison, ...]

    @property
    def needs_reasons(self) -> bool:
        """Whether an INT8 row is not faster somewhere."""
        return self.row.precision.is_quantized and any(each.slower for each in self.comparisons)


def verdicts(report: Report) -> list[Verdict]:
    """Return the verdict of each timed row that is not its own baseline; INT8 is also compared with FP16."""
    judged = []
    for row in report.rows:
        baseline = report.baseline(row)
        if row is baseline or not row.latencies:
            continue
        half = report.fp16_row(row) if row.precision.is_quantized else None
        others = [other for other in (baseline, half) if other] if baseline else []
        judged.append(Verdict(row, tuple(_compared(report, row, other) for other in others)))
    return judged


def _compared(report: Report, row: Row, baseline: Row) -> Comparison:
    ratio = report.ratio(row, baseline)
    return Comparison(baseline, {shape: speed for shape in report.shapes if (speed := ratio.speed(shape)) is not None})


def verdict(report: Report) -> list[Phrase]:
    """Return the sentences on `verdicts`."""
    return [phrase for each in verdicts(report) for phrase in _sentences(each)]


def _sentences(judged: Verdict) -> list[Phrase]:
    row = judged.row
    if not judged.comparisons:
        return [Phrase(f"{row.name} on {row.place} has no FP32 row on the same backend and device to compare with")]
    phrases = []
    for each in judged.comparisons:
        than = f"faster than {each.baseline.name} on {row.place} at"
        if each.faster:
            phrases.append(Phrase(f"{row.name} is {than} {_shapes(each.faster)}", "good"))
        if each.slower:
            phrases.append(Phrase(f"{row.name} is NOT {than} {_shapes(each.slower)}", "bad"))
    return [*phrases, Phrase(_reasons(row))] if judged.needs_reasons else phrases


def _shapes(speeds: Mapping[str, float]) -> str:
    return ", ".join(f"{shape} ({speed:.2f}x)" for shape, speed in speeds.items())


def _reasons(row: Row) -> str:
    command = shlex.join(["q8trt", "lint", *([row.folder] if row.folder else [])])
    if not row.findings:
        return f"{row.name}: the linter finds nothing in this graph that keeps TensorRT from INT8 ({command})"
    more = f" and {len(row.findings) - 1} more" if len(row.findings) > 1 else ""
    return f"{row.name}: what stands in the way on TensorRT, by the linter: {row.findings[0]}{more}; see {command}"
