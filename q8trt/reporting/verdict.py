"""The verdict on each row of a benchmark: faster than FP32 and FP16 on the same backend and device, or not."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from q8trt.reporting.measurements import Measurements, Ratio, Row
from q8trt.reporting.table import Phrase

#: Even interleaved medians vary: a smaller difference is not called one.
FASTER_FROM = 1.02


@dataclass(frozen=True)
class Verdict:
    """A timed row and its ratios to FP32 and, for INT8, FP16; none where no FP32 row has the same backend and device."""

    row: Row
    ratios: tuple[Ratio, ...]


def faster(ratio: Ratio) -> dict[str, float]:
    """Return the speeds at the shapes where a row is faster than its baseline."""
    return {shape: speed for shape, speed in ratio.speeds.items() if speed >= FASTER_FROM}


def slower(ratio: Ratio) -> dict[str, float]:
    """Return the speeds at the shapes where it is not."""
    return {shape: speed for shape, speed in ratio.speeds.items() if speed < FASTER_FROM}


def verdicts(report: Measurements) -> list[Verdict]:
    """Return the verdict of each timed row that is not its own baseline."""
    judged = []
    for row in report.rows:
        baseline = report.baseline(row)
        if row is baseline or not row.latencies:
            continue
        half = report.fp16_row(row) if row.precision.is_quantized else None
        others = [other for other in (baseline, half) if other] if baseline else []
        judged.append(Verdict(row, tuple(report.ratio(row, other) for other in others)))
    return judged


def verdict(report: Measurements) -> list[Phrase]:
    """Return the sentences on `verdicts`."""
    return [phrase for each in verdicts(report) for phrase in _sentences(each)]


def _sentences(judged: Verdict) -> list[Phrase]:
    row = judged.row
    if not judged.ratios:
        return [Phrase(f"{row.name} on {row.place} has no FP32 row on the same backend and device to compare with")]
    phrases = []
    for ratio in judged.ratios:
        than = f"faster than {ratio.baseline} on {row.place} at"
        if gains := faster(ratio):
            phrases.append(Phrase(f"{row.name} is {than} {_shapes(gains)}", "good"))
        if losses := slower(ratio):
            phrases.append(Phrase(f"{row.name} is NOT {than} {_shapes(losses)}", "bad"))
    if row.precision.is_quantized and any(map(slower, judged.ratios)):
        phrases.append(Phrase(_reasons(row)))
    return phrases


def _shapes(speeds: Mapping[str, float]) -> str:
    return ", ".join(f"{shape} ({speed:.2f}x)" for shape, speed in speeds.items())


def _reasons(row: Row) -> str:
    command = shlex.join(["q8trt", "lint", *([row.folder] if row.folder else [])])
    if not row.findings:
        return f"{row.name}: the linter finds nothing in this graph that keeps TensorRT from INT8 ({command})"
    more = f" and {len(row.findings) - 1} more" if len(row.findings) > 1 else ""
    return f"{row.name}: what stands in the way on TensorRT, by the linter: {row.findings[0]}{more}; see {command}"
