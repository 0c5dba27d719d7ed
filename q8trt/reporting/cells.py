"""Figures as text, the same on the terminal, in Markdown and in HTML."""

from __future__ import annotations

from q8trt.reporting.report import Report, Row
from q8trt.runtime.timing.hardware import GpuState
from q8trt.runtime.timing.timing import PARTS, Latency

SPEEDUP_LEGEND = "speed: FP32's median time over this row's, same backend and device; above 1 is faster than FP32"
LENGTHS_LEGEND = (
    "samples/s: rows over host wall time, batches of both kinds taking turns; speed: buckets over fixed length"
)
#: With more shapes than this the tables below the summary tell the times.
SUMMARY_SHAPES = 4

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


#: Headers of `detail_cells`, two lines each.
DETAILS: tuple[Column, ...] = (
    ("batch x", "sequence"), ("median", "ms"), ("mean", "ms"), ("p90", "ms"), ("p95", "ms"), ("p99", "ms"),
    ("queries", "/s"), ("samples", "/s"), ("GEMM", "TOPS"), ("of", "peak"), ("speed", ""),
)  # fmt: skip
#: Headers of `part_cells`.
DEVICE_PARTS: tuple[Column, ...] = (
    ("batch x", "sequence"), ("H2D", "ms"), ("GPU", "ms"), ("D2H", "ms"), ("enqueue", "ms"), ("host wall", "ms"),
    ("CUDA", "graph"), ("copies", "timed"),
)  # fmt: skip
#: Headers of `length_cells`.
LENGTHS: tuple[Column, ...] = (
    ("", "rows"), ("batch", "size"), ("tokens", "a row"), ("length buckets", "samples/s"), ("fixed length", "samples/s"),
    ("speed", ""),
)  # fmt: skip


def rate(value: float | None) -> str:
    """Events per second: three digits or more; ``"-"`` for None."""
    return _cell(value, ".0f" if value is None or value >= 100 else ".1f" if value >= 10 else ".2f")


def percent(fraction: float | None) -> str:
    """``"54%"``; ``"-"`` for None."""
    return "-" if fraction is None else f"{100 * fraction:.0f}%"


def detail_cells(report: Report, row: Row, latency: Latency) -> list[str]:
    """One line of `DETAILS`."""
    times = (latency.median_ms, latency.mean_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)
    return [
        latency.shape,
        *map(ms, times),
        rate(latency.queries_per_s),
        rate(latency.samples_per_s),
        _cell(latency.gemm_tops, ".3f" if (latency.gemm_tops or 0) < 10 else ".1f"),
        percent(latency.peak_share),
        time_cells(report, row, latency.shape)[1],
    ]


def part_cells(latency: Latency) -> list[str]:
    """One line of `DEVICE_PARTS`: medians."""
    words = {None: "-", True: "on", False: "off"}
    medians = [_cell(latency.parts[name].median_ms, ".3f") for name in PARTS]
    return [latency.shape, *medians, words[latency.cuda_graph], words[latency.transfers]]


def length_cells(row: Row) -> list[str]:
    """One line of `LENGTHS`; [] where it was not measured."""
    found = row.lengths
    if found is None:
        return []
    rates = (rate(found.bucket_samples_per_s), rate(found.fixed_samples_per_s), f"{found.ratio:.2f}x")
    return [str(found.rows), str(found.batch_size), f"{found.mean_tokens:.1f}", *rates]


def lengths_title(report: Report) -> str:
    """``"Length buckets 16, 32, 64, 128 against fixed 128"``; "" where nothing was measured."""
    found = next((row.lengths for row in report.rows if row.lengths), None)
    if found is None:
        return ""
    rows = "all rows" if found.rows == report.rows_evaluated else f"{found.rows} rows in evenly spaced batches"
    return f"Length buckets {', '.join(map(str, found.buckets))} against fixed {found.fixed}, {rows}"


def gpu_line(gpu: GpuState) -> str:
    """``"NVIDIA L40S right after timing: driver 570.86, SM clock 2520 of 2520 MHz, memory used 1200 MiB, ..."``."""
    clock, most = _cell(gpu.sm_clock_mhz, ".0f"), _cell(gpu.max_sm_clock_mhz, ".0f")
    memory, heat, power = (_cell(each, ".0f") for each in (gpu.memory_used_mib, gpu.temperature_c, gpu.power_w))
    return (
        f"{gpu.name} right after timing: driver {gpu.driver}, SM clock {clock} of {most} MHz, "
        f"memory used {memory} MiB (all processes), {heat} °C, {power} W"
    )
