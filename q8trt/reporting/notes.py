"""Sentences that a reader of a benchmark report needs beside its figures."""

from __future__ import annotations

from collections.abc import Sequence

from q8trt.console.counts import plural
from q8trt.hardware.gpu import GpuState
from q8trt.reporting.formats import number
from q8trt.reporting.measurements import Measurements, Parity, Row
from q8trt.reporting.table import DASH
from q8trt.runtime.registry import label_of, runs_plans
from q8trt.runtime.timing.hardware import peak_source
from q8trt.runtime.timing.latency import TimingWarning

#: With fewer texts than this, the share of nearest neighbors has a note.
NEIGHBOR_TEXTS = 500


def all_notes(report: Measurements) -> list[str]:
    """Return the report's notes, and notes on torch's scores, few texts, floats, parity, doubtful times and peaks."""
    notes = [*report.notes, *_torch_notes(report), *_neighbor_notes(report)]
    notes += [f"{row.name}: {in_float_text(row.in_float)}" for row in report.rows if row.in_float]
    notes += [_parity_note(row, row.parity) for row in report.rows if row.parity]
    notes += [note for row in report.rows for note in _timing_notes(row)]
    return notes + _peak_notes(report)


def in_float_text(parts: Sequence[str]) -> str:
    """Return a sentence on products and residual Adds in floating point that other layers run in INT8."""
    operations = plural(len(parts), "operation")
    return f"the recipe leaves {operations} of single layers in floating point: {', '.join(parts)}"


def place_note(report: Measurements) -> str:
    """Return a sentence if no figure was taken on TensorRT; "" if one was, or if there are no rows."""
    if not report.rows or any(runs_plans(row.backend) for row in report.rows):
        return ""
    labels = " and ".join(dict.fromkeys(label_of(row.backend) for row in report.rows))
    if all(row.device == "cpu" for row in report.rows):
        return f"These are {labels}'s figures on the CPU; they do not forecast a GPU's"
    return f"No figure was taken on TensorRT; these are {labels}'s"


def _torch_notes(report: Measurements) -> list[str]:
    """Return a note on the score of torch FP32, the reference of every engine."""
    if report.is_drift or not any(row.metrics for row in report.rows):  # without labels it is compared with itself
        return []
    scores = {report.torch_fp32_x100(row) for row in report.rows} - {None}
    return [
        f"torch FP32 scored {report.main_metric} x100 {score:.2f} on the run's development set, as recorded there"
        for score in sorted(score for score in scores if score is not None)
    ]


def _neighbor_notes(report: Measurements) -> list[str]:
    """Return a note if the share of neighbors was measured on few texts."""
    texts = report.rows_evaluated
    if texts >= NEIGHBOR_TEXTS or not any("neighbors_10" in row.metrics for row in report.rows):
        return []
    return [
        f"neighbors_10 was measured on only {texts} texts; use {NEIGHBOR_TEXTS} or more for a figure that is meaningful for "
        "search"
    ]


def _parity_note(row: Row, parity: Parity) -> str:
    return (
        f"{row.name}: logits of {row.place} differ from the torch model's by at most "
        f"{parity.largest_logit_difference:.2g}, {parity.mean_logit_difference:.2g} on average "
        f"(logits reach {parity.largest_logit:.2g})"
    )


def _timing_notes(row: Row) -> list[str]:
    """Return a note for each kind of warning, with its shapes and the words of the first."""
    kinds: dict[str, list[tuple[str, TimingWarning]]] = {}
    for latency in row.latencies:
        for warning in latency.warnings:
            kinds.setdefault(warning.kind, []).append((latency.shape, warning))
    notes = []
    for kind, warnings in kinds.items():
        everywhere = len(warnings) == len(row.latencies) > 1
        shapes = "every shape" if everywhere else ", ".join(shape for shape, _ in warnings)
        shape, first = warnings[0]
        where = f"at {shape}, " if len(warnings) > 1 else ""
        notes.append(f"{row.name} on {row.place}: {kind} at {shapes}: {where}{first.detail}")
    return notes


def _peak_notes(report: Measurements) -> list[str]:
    """Return a note on the source of each device's peak, of which the rows show a share."""
    devices = dict.fromkeys(
        row.device for row in report.rows if any(each.peak_share is not None for each in row.latencies)
    )
    return [f"Share of peak: dense tensor-core peak of the {device} by {peak_source(device)}" for device in devices]


def gpu_note(gpu: GpuState) -> str:
    """Return ``"NVIDIA L40S right after timing: driver 570.86, SM clock 2520 of 2520 MHz, memory used 1200 MiB, ..."``."""

    def whole(value: float | None) -> str:
        return DASH if value is None else number(value, ".0f")

    return (
        f"{gpu.name} right after timing: driver {gpu.driver}, SM clock {whole(gpu.sm_clock_mhz)} of "
        f"{whole(gpu.max_sm_clock_mhz)} MHz, memory used {whole(gpu.memory_used_mib)} MiB (all processes), "
        f"{whole(gpu.temperature_c)} °C, {whole(gpu.power_w)} W"
    )
