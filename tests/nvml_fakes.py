"""A stand-in for NVML: the functions that q8trt calls, over described GPUs; every name must be one that pynvml has."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml
import pytest


@dataclass(frozen=True)
class Card:
    """A GPU as NVML reports it; None raises `NVMLError_NotSupported`. Memory in bytes, power in mW."""

    uuid: str
    name: str
    capability: tuple[int, int]
    total: int | None
    used: int = 0
    clock: int | None = None
    max_clock: int | None = None
    temperature: int | None = None
    power: int | None = None


def install_nvml(monkeypatch: pytest.MonkeyPatch, *cards: Card, driver: str = "570.86.15", lost: bool = False) -> None:
    """Let `import pynvml` give a driver with these GPUs; `lost`: the last one fell off the bus."""

    def reported(value: Any) -> Any:
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def handle_of(index: int) -> Card:
        if lost and index == len(cards) - 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return cards[index]

    def memory(card: Card, version: int) -> Any:
        assert version == pynvml.nvmlMemory_v2
        return types.SimpleNamespace(total=reported(card.total), used=card.used)

    def clock(attribute: str) -> Callable[[Card, int], Any]:
        def read(card: Card, kind: int) -> Any:
            assert kind == pynvml.NVML_CLOCK_SM
            return reported(getattr(card, attribute))

        return read

    def temperature(card: Card, sensor: int) -> Any:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return reported(card.temperature)

    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": handle_of,
        "nvmlSystemGetDriverVersion": lambda: driver,
        "nvmlDeviceGetUUID": lambda card: card.uuid,
        "nvmlDeviceGetName": lambda card: card.name,
        "nvmlDeviceGetCudaComputeCapability": lambda card: card.capability,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetClockInfo": clock("clock"),
        "nvmlDeviceGetMaxClockInfo": clock("max_clock"),
        "nvmlDeviceGetTemperature": temperature,
        "nvmlDeviceGetPowerUsage": lambda card: reported(card.power),
    }
    assert all(callable(getattr(pynvml, name)) for name in functions)
    fake = types.ModuleType("pynvml")
    fake.__dict__.update({name: getattr(pynvml, name) for name in dir(pynvml) if not name.startswith("nvmlDevice")})
    fake.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
