"""The NVIDIA GPUs of this machine, as the driver reports them through NVML (package nvidia-ml-py): no CUDA context is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")
_MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: "NVIDIA L40S".
        sm: compute capability, "8.9".
        memory_mib: memory in MiB; 0 where the driver does not report it.
        driver: the driver's version, "570.86.15".
    """

    name: str
    sm: str
    memory_mib: int
    driver: str


@dataclass(frozen=True)
class GpuState:
    """A GPU at one moment; None for what the driver does not report. Memory is the whole GPU's."""

    name: str
    driver: str
    sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    memory_used_mib: float | None
    temperature_c: float | None
    power_w: float | None


def gpus() -> list[Gpu]:
    """Return the GPUs that CUDA programs started here can use, CUDA_VISIBLE_DEVICES applied.

    The list is empty without a GPU, its driver or nvidia-ml-py.
    """
    cards = dict(_read_devices(_identity))
    return _visible(cards, os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_states() -> list[GpuState]:
    """Return the present state of every GPU of the machine; [] without a GPU, its driver or nvidia-ml-py."""
    return _read_devices(_state)


def gpu_names() -> list[str]:
    """Return the name of every GPU of the machine, hidden ones included."""
    return [card.name for _, card in _read_devices(_identity)]


def _read_devices(read: Callable[[Any, Any], _T]) -> list[_T]:
    """Return `read(nvml, handle)` of each GPU."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # the package is missing, or NVML's own error: no driver
        return []
    try:
        return [read(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:  # a GPU that fell off the bus
        return []
    finally:
        nvml.nvmlShutdown()


def _identity(nvml: Any, handle: Any) -> tuple[str, Gpu]:
    """Return the UUID of a GPU, and the GPU."""
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = _reported(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).total) or 0
    name, driver = nvml.nvmlDeviceGetName(handle), nvml.nvmlSystemGetDriverVersion()
    return nvml.nvmlDeviceGetUUID(handle), Gpu(name, f"{major}.{minor}", int(memory) // _MIB, driver)


def _state(nvml: Any, handle: Any) -> GpuState:
    def read(call: Callable[[], float], unit: float = 1) -> float | None:
        value = _reported(nvml, call)
        return None if value is None else round(value / unit, 2)

    return GpuState(
        name=nvml.nvmlDeviceGetName(handle),
        driver=nvml.nvmlSystemGetDriverVersion(),
        sm_clock_mhz=read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        max_sm_clock_mhz=read(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_used_mib=read(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used // _MIB),
        temperature_c=read(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_w=read(lambda: nvml.nvmlDeviceGetPowerUsage(handle), unit=1000),
    )


def _reported(nvml: Any, call: Callable[[], float]) -> float | None:
    """Return what `call` returns; None where the driver does not report it."""
    try:
        return call()
    except nvml.NVMLError:
        return None


def _visible(cards: dict[str, Gpu], mask: str | None) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES: indices or UUID prefixes; the first one that names no GPU hides it and the rest."""
    listed = list(cards.values())
    if mask is None:
        return listed
    chosen = []
    for item in (part.strip() for part in mask.split(",")):
        if item.isdigit() and int(item) < len(listed):
            chosen.append(listed[int(item)])
        elif item.startswith("GPU-") and (match := [card for uuid, card in cards.items() if uuid.startswith(item)]):
            chosen.append(match[0])
        else:
            break
    return chosen
