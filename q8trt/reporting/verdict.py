"""The verdict of a benchmark: how fast each row is, and the accuracy that it costs, in one sentence.

On a GPU, INT8 is compared first with FP16, the usual alternative, then with FP32. On a CPU it is compared only with FP32.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from q8trt.console.commands import command
from q8trt.console.counts import plural
from q8trt.reporting.formats import enumeration, number
from q8trt.reporting.measurements import Measurements, Ratio, Row
from q8trt.reporting.notes import place_note
from q8trt.reporting.scores import drift_clause, is_drift, shown_difference
from q8trt.reporting.table import Phrase, Tone
from q8trt.runtime.registry import runs_plans
from q8trt.tasks.metrics import direction

#: Even interleaved medians vary, so a smaller difference does not count.
FASTER_FROM = 1.02
#: With more shapes than this, a sentence gives their range.
_SHAPES = 3


@dataclass(frozen=True)
class Verdict:
    """A timed row compared with another one of the same backend and device.

    Attributes:
        row: the row that is judged.
        baseline: the row that it is compared with.
        ratio: the figures of the row over those of the baseline.
        metric: the metric of the scores.
        score_x100: score of the row; None if it was not scored.
        baseline_x100: score of the baseline; None if it was not scored.
    """

    row: Row
    baseline: Row
    ratio: Ratio
    metric: str
    score_x100: float | None
    baseline_x100: float | None

    @property
    def faster(self) -> dict[str, float]:
        """Shape -> speed, for shapes at which the row is faster, by 2% or more."""
        return {shape: speed for shape, speed in self.ratio.speeds.items() if speed >= FASTER_FROM}

    @property
    def even(self) -> dict[str, float]:
        """Shape -> speed, for shapes at which the difference is less than 2%."""
        return {shape: speed for shape, speed in self.ratio.speeds.items() if 1 / FASTER_FROM < speed < FASTER_FROM}

    @property
    def is_faster(self) -> bool:
        """True if the row is faster at every shape."""
        return bool(self.faster) and not self.even and not self.slower

    @property
    def unstable(self) -> tuple[str, ...]:
        """The judged shapes at which a warning calls the times of a row unstable, such as ``"FP32 at 1x64"``."""
        places = []
        for row in (self.baseline, self.row):
            shapes = [each.shape for each in row.latencies if each.is_unstable and each.shape in self.ratio.speeds]
            if shapes:
                everywhere = len(shapes) == len(self.ratio.speeds) > 1
                places.append(f"{row.name} at {'every shape' if everywhere else enumeration(shapes)}")
        return tuple(places)

    @property
    def slower(self) -> dict[str, float]:
        """Shape -> speed, for shapes at which the row is slower, by 2% or more."""
        return {shape: speed for shape, speed in self.ratio.speeds.items() if speed <= 1 / FASTER_FROM}


def verdicts(report: Measurements) -> list[Verdict]:
    """Return the verdicts: quantized rows against FP16, quantized rows against FP32, then the other rows against FP32."""
    quantized = [row for row in report.rows if row.precision.is_quantized]
    pairs = [(row, report.fp16_row(row)) for row in quantized]
    others = [row for row in report.rows if not row.precision.is_quantized and row is not report.baseline(row)]
    pairs += [(row, report.baseline(row)) for row in (*quantized, *others)]
    judged = [_verdict(report, row, baseline) for row, baseline in pairs if baseline]
    return [each for each in judged if each.ratio.speeds]


def _verdict(report: Measurements, row: Row, baseline: Row) -> Verdict:
    scores = report.score_x100(row), report.score_x100(baseline)
    return Verdict(row, baseline, report.ratio(row, baseline), report.main_metric, *scores)


def verdict(report: Measurements) -> list[Phrase]:
    """Return a sentence on each verdict, on the linter's reasons, on missing baselines, and on missing TensorRT figures."""
    judged = verdicts(report)
    phrases = [_sentence(each, report.places) for each in judged]
    for row in report.rows:
        mine = [each for each in judged if each.row is row]
        if row.precision.is_quantized and runs_plans(row.backend) and not all(each.is_faster for each in mine):
            phrases.append(_reasons(row))
        phrases += _not_compared(report, row, bool(mine))
    note = place_note(report) if any(row.latencies for row in report.rows) else ""
    return [*phrases, Phrase(note)] if note else phrases


def _sentence(judged: Verdict, places: Sequence[str]) -> Phrase:
    name, base = judged.row.name, judged.baseline.name
    where = f" on {judged.row.place}" if len(places) > 1 else ""
    clauses, total = [], len(judged.ratio.speeds)
    if judged.faster:
        clauses.append(_faster(judged.faster, base, total))
    if judged.even:
        clauses.append(f"about as fast{'' if clauses else f' as {base}'} {_at(judged.even, total)}")
    if judged.slower:
        clauses.append(f"slower{'' if clauses else f' than {base}'} {_at(judged.slower, total)}")
    tone: Tone = "good" if judged.is_faster else "warning" if judged.faster or judged.even else "bad"
    doubt = f"; these ratios are doubtful: unstable times of {enumeration(judged.unstable)}" if judged.unstable else ""
    text = f"{name}{where} is {' but '.join(clauses)}{_accuracy(judged)}{doubt}"
    return Phrase(text, "warning" if doubt else tone)


def _faster(speeds: Mapping[str, float], base: str, total: int) -> str:
    """Return ``"1.62x as fast as FP16 at 1x64 and 1.80x at 16x64"``, or the range over many shapes."""
    if len(speeds) > _SHAPES:
        return f"{_range(speeds)} as fast as {base} at {_count(speeds, total)}"
    (shape, speed), *others = speeds.items()
    return enumeration([f"{speed:.2f}x as fast as {base} at {shape}", *(f"{each:.2f}x at {at}" for at, each in others)])


def _at(speeds: Mapping[str, float], total: int) -> str:
    """Return ``"at 1x64 (0.97x)"``, or the range over many shapes."""
    if len(speeds) > _SHAPES:
        return f"at {_count(speeds, total)} ({_range(speeds)})"
    return "at " + enumeration([f"{shape} ({speed:.2f}x)" for shape, speed in speeds.items()])


def _count(speeds: Mapping[str, float], total: int) -> str:
    return f"all {total} shapes" if len(speeds) == total else f"{len(speeds)} of {total} shapes"


def _range(speeds: Mapping[str, float]) -> str:
    low, high = f"{min(speeds.values()):.2f}x", f"{max(speeds.values()):.2f}x"
    return low if low == high else f"{low} to {high}"


def _accuracy(judged: Verdict) -> str:
    """Return ``", and loses 0.12 points of pearson (from 91.00 to 90.88)"``, the end of the sentence on the speed.

    Without labels, it gives the distance to the FP32 model: ``"; its embeddings have a mean cosine of 0.9973 to FP32's"``.
    """
    if is_drift(judged.metric) and judged.metric in judged.row.metrics:
        return f"; {drift_clause(judged.metric, judged.row.metrics)}"
    score, base = judged.score_x100, judged.baseline_x100
    if score is None or base is None:
        return "; its accuracy was not measured"
    points = number(shown_difference(judged.metric, score, base), ".2f")
    if float(points) == 0:
        return f", and has the same {judged.metric} ({score:.2f})"
    verb = "gains" if direction(judged.metric) * (score - base) > 0 else "loses"
    return f", and {verb} {points.lstrip('-')} points of {judged.metric} (from {base:.2f} to {score:.2f})"


def _reasons(row: Row) -> Phrase:
    """Return a sentence with the linter's worst finding on a row that is not faster at every shape, if it has one."""
    lint = shlex.join(["q8trt", "lint", *([row.folder] if row.folder else [])])
    if not row.findings:
        return Phrase(f"The linter finds no reason why {row.name} is not faster everywhere ({lint})")
    others = len(row.findings) - 1
    more = f", and {plural(others, 'other finding')}" if others else ""
    return Phrase(f"The linter's reason why {row.name} is not faster everywhere: {row.findings[0]}{more} ({lint})")


def _not_compared(report: Measurements, row: Row, is_judged: bool) -> list[Phrase]:
    """Return a sentence if a timed row has no baseline: FP32, or FP16 for a quantized row on a GPU."""
    is_baseline = row is report.baseline(row) or row.repeats_fp32
    if not row.latencies or is_baseline:
        return []
    if not is_judged:
        drift = ""
        if report.is_drift and report.main_metric in row.metrics:
            drift = f"; {drift_clause(report.main_metric, row.metrics)}"
        return [
            Phrase(f"{row.name} on {row.place} has no FP32 row on the same backend and device to compare with{drift}")
        ]
    if row.precision.is_quantized and runs_plans(row.backend) and report.fp16_row(row) is None:
        build = command("build-engine", "--fp16")
        return [Phrase(f"{row.name} was not compared with FP16, its alternative on a GPU; build that engine: {build}")]
    return []
