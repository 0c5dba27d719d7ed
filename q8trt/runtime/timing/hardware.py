"""The peak rates of GPUs, and a warning if a clock moved while figures were taken."""

from __future__ import annotations

import re
from dataclasses import dataclass

from q8trt.hardware.gpu import GpuState
from q8trt.quantization.precision import Precision


@dataclass(frozen=True)
class Peak:
    """Dense tensor-core peaks of a GPU at its boost clock, in 10^12 operations per second, without sparsity.

    Attributes:
        pattern: a regular expression that is searched for in the driver's name of the GPU.
        int8: INT8 products, INT32 sums.
        fp16: FP16 products, FP32 sums; on GeForce cards a kernel that sums in FP16 can exceed it.
        source: the document with the peaks.
    """

    pattern: str
    int8: float
    fp16: float
    source: str


_ADA = "NVIDIA Ada GPU Architecture whitepaper v2.02, appendix A"
_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper v1.1, appendix A"
#: The first pattern that matches is used, so special cases come before general ones.
PEAKS = (
    Peak(r"H200 NVL|H100 NVL", 1671, 835, "NVIDIA H100 and H200 NVL datasheets, half of the figures with sparsity"),
    Peak(r"H100 PCIe", 1513, 756, "NVIDIA H100 datasheet, half of the figures with sparsity"),
    Peak(r"H200|H100|GH200", 1979, 989, "NVIDIA H100 and H200 datasheets (SXM), half of the figures with sparsity"),
    Peak(r"A100\b", 624, 312, "NVIDIA A100 datasheet"),
    Peak(r"A10\b", 250, 125, "NVIDIA A10 datasheet"),
    Peak(r"A30\b", 330, 165, "NVIDIA A30 datasheet"),
    Peak(r"L40S\b", 733, 362, "NVIDIA L40S datasheet"),
    Peak(r"L40\b", 362, 181, "NVIDIA L40 datasheet"),
    Peak(r"L4\b", 242, 121, "NVIDIA L4 datasheet, half of the figures with sparsity"),
    Peak(r"RTX 4090(?! D| Laptop)", 660.6, 165.2, _ADA),
    Peak(r"RTX 5090(?! D| Laptop)", 838, 209.5, _BLACKWELL),
    Peak(r"(Tesla )?T4\b", 130, 65, "NVIDIA T4 datasheet"),
)


def peak_tops(device: str, precision: Precision) -> float | None:
    """Return the peak of `device`, a name of the driver, at `precision`.

    Return None for a CPU, an unknown GPU, and FP32, whose peak depends on TF32.
    """
    peak = _peak(device)
    if peak is None or precision == Precision.FP32:
        return None
    return peak.int8 if precision.is_quantized else peak.fp16


def peak_source(device: str) -> str | None:
    """Return the document with the peak of `device`; None if there is none."""
    peak = _peak(device)
    return peak.source if peak else None


def _peak(device: str) -> Peak | None:
    return next((peak for peak in PEAKS if re.search(peak.pattern, device)), None)


def clock_warning(states: list[GpuState]) -> str | None:
    """Return a warning if the SM clock moved by more than 5% between states under load; None if not, or if it is unknown."""
    clocks = [state.sm_clock_mhz for state in states if state.sm_clock_mhz]
    if not clocks or max(clocks) <= 1.05 * min(clocks):
        return None
    return (
        f"unstable clocks: the SM clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz while timing; "
        "lock it (nvidia-smi --lock-gpu-clocks) for figures that repeat"
    )
