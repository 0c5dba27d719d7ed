"""The NVIDIA GPUs of this machine, as the driver reports them. No CUDA context is created.

The source is NVML (package nvidia-ml-py), or the driver's program ``nvidia-smi`` if that package is missing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MIB = 2**20
#: Fields of ``nvidia-smi --query-gpu`` in the order in which `_smi_card` reads them.
_SMI_FIELDS = (
    "uuid", "driver_version", "name", "compute_cap", "memory.total", "clocks.sm", "clocks.max.sm", "memory.used",
    "temperature.gpu", "power.draw",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: the product name, such as "NVIDIA L40S".
        sm: compute capability, such as "8.9".
        memory_mib: total memory in MiB; 0 if the driver does not report it.
        driver: version of the driver, such as "570.86.15".
    """

    name: str
    sm: str
    memory_mib: int
    driver: str


@dataclass(frozen=True)
class GpuState:
    """The state of a GPU at one moment. A value is None if the driver does not report it.

    `memory_used_mib` counts all processes on the GPU.
    """

    name: str
    driver: str
    sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    memory_used_mib: float | None
    temperature_c: float | None
    power_w: float | None


@dataclass(frozen=True)
class _Card:
    uuid: str
    gpu: Gpu
    state: GpuState


def gpus() -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES allows; [] if there is no GPU or no driver, or if the driver fails.

    The order is the driver's, by PCI bus. CUDA uses it with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``; its default is the fastest first.
    """
    return _visible({card.uuid: card.gpu for card in _cards()}, os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_states() -> list[GpuState]:
    """Return the current state of every GPU of the machine, also of hidden ones; [] as for `gpus`."""
    return [card.state for card in _cards()]


def gpu_names() -> list[str]:
    """Return the name of every GPU of the machine, also of hidden ones; [] as for `gpus`."""
    return [card.gpu.name for card in _cards()]


def _cards() -> list[_Card]:
    try:
        import pynvml as nvml
    except ImportError:
        return _smi_cards()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_nvml_card(nvml, handle) for handle in handles]
    except nvml.NVMLError:  # a GPU that fell off the bus
        return []
    finally:
        nvml.nvmlShutdown()


def _nvml_card(nvml: Any, handle: Any) -> _Card:
    def read(call: Callable[[], float], unit: float = 1) -> float | None:
        try:
            return round(call() / unit, 2)
        except nvml.NVMLError:  # this driver does not report it
            return None

    name, driver = nvml.nvmlDeviceGetName(handle), nvml.nvmlSystemGetDriverVersion()
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = read(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).total // _MIB)
    state = GpuState(
        name=name,
        driver=driver,
        sm_clock_mhz=read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        max_sm_clock_mhz=read(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_used_mib=read(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used // _MIB),
        temperature_c=read(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_w=read(lambda: nvml.nvmlDeviceGetPowerUsage(handle), unit=1000),
    )
    return _Card(nvml.nvmlDeviceGetUUID(handle), Gpu(name, f"{major}.{minor}", int(memory or 0), driver), state)


def _smi_cards() -> list[_Card]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):  # no driver, or a GPU that fell off the bus
        return []
    rows = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines()]
    return [_smi_card(*row) for row in rows if len(row) == len(_SMI_FIELDS)]


def _smi_card(uuid: str, driver: str, name: str, sm: str, total: str, *state: str) -> _Card:
    memory, *numbers = (float(text) if text.replace(".", "", 1).isdigit() else None for text in (total, *state))
    return _Card(uuid, Gpu(name, sm, int(memory or 0), driver), GpuState(name, driver, *numbers))


def _visible(cards: dict[str, Gpu], mask: str | None) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES: indices, or UUIDs that may be shortened. The first item that matches no GPU ends the list.

    The UUID of a MIG instance matches no GPU.
    """
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
