"""The GPU as a prepared check uses it. Tests put ONNX Runtime on the CPU in its place."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from q8trt.engine.backend import find_backend
from q8trt.engine.builder import build_here, inspect_plan
from q8trt.engine.config import BuildConfig, PlanInfo
from q8trt.engine.shapes import ShapeProfile
from q8trt.hardware.gpu import gpus
from q8trt.quantization.precision import Precision
from q8trt.runtime import RunOptions
from q8trt.runtime.base import Runner
from q8trt.runtime.tensorrt.cuda import cuda_runtime
from q8trt.runtime.tensorrt.runner import TensorRTRunner


class Machine(Protocol):
    """A machine that builds and runs plans in the process that asks.

    Attributes:
        title: what runs the engines, "TensorRT 10.6.0".
        device: the name of the GPU.
        torch_device: where torch computes, "cuda:0".
    """

    title: str
    device: str
    torch_device: str

    def build(self, onnx: Path, plan: Path, profiles: tuple[ShapeProfile, ...], timing_cache: Path) -> PlanInfo:
        """Build a plan. Raises as `q8trt.engine.builder.build_here`."""

    def inspect(self, plan: Path) -> str | None:
        """Return the inspector's JSON; None if there is none."""

    def open(self, plan: Path, precision: Precision) -> Runner:
        """Return the plan, loaded; its runner has ``fork``, see `TensorRTRunner`."""

    def free_bytes(self) -> int:
        """Return the free device memory."""


class Gpu:
    """The first GPU, on the TensorRT package that `find_backend` chooses; see `Machine`.

    Raises:
        BackendError: no backend, no cuda-python, or no GPU that it runs on.
    """

    torch_device = "cuda:0"

    def __init__(self) -> None:
        self._backend = find_backend()
        self._cuda = cuda_runtime(self._backend.name)
        self._cuda.cudaSetDevice(0)  # before TensorRT, which ends the process where CUDA does not start
        self.title = self._backend.title
        self.device = next((card.name for card in gpus()), "unknown GPU")

    def build(self, onnx: Path, plan: Path, profiles: tuple[ShapeProfile, ...], timing_cache: Path) -> PlanInfo:
        """See `Machine.build`."""
        config = BuildConfig(self._backend.name, profiles, timing_cache=str(timing_cache))
        return build_here(onnx, plan, config)

    def inspect(self, plan: Path) -> str | None:
        """See `Machine.inspect`."""
        return inspect_plan(self._backend, plan.read_bytes())

    def open(self, plan: Path, precision: Precision) -> Runner:
        """See `Machine.open`."""
        return TensorRTRunner(plan, precision, self._backend.name, options=RunOptions(specialization="eager"))

    def free_bytes(self) -> int:
        """See `Machine.free_bytes`."""
        return int(self._cuda.cudaMemGetInfo()[0])


GPU = f"{Gpu.__module__}:{Gpu.__name__}"


def open_machine(name: str) -> Machine:
    """Return a machine by "module:class"."""
    module, _, attribute = name.partition(":")
    machine: Any = getattr(importlib.import_module(module), attribute)
    opened: Machine = machine()
    return opened
