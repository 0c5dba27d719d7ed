"""The GPU that a prepared check uses. Tests replace it by ONNX Runtime on the CPU."""

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
    """A machine that builds and runs plans in the calling process.

    Attributes:
        title: the library that runs the engines, such as "TensorRT 10.6.0".
        device: the name of the GPU.
        torch_device: the device for torch, such as "cuda:0".
    """

    title: str
    device: str
    torch_device: str

    def build(self, onnx: Path, plan: Path, profiles: tuple[ShapeProfile, ...], timing_cache: Path) -> PlanInfo:
        """Build a plan. Raises the same errors as `q8trt.engine.builder.build_here`."""

    def inspect(self, plan: Path) -> str | None:
        """Return the inspector's JSON; None if there is none."""

    def open(self, plan: Path, precision: Precision) -> Runner:
        """Return a runner of the loaded plan, which has ``fork``, see `TensorRTRunner`."""

    def free_bytes(self) -> int:
        """Return the free device memory, in bytes."""


class Gpu:
    """The first GPU, on the TensorRT package that `find_backend` chooses; see `Machine`.

    Raises:
        BackendError: the backend or cuda-python is missing, or no GPU can be used.
    """

    torch_device = "cuda:0"

    def __init__(self) -> None:
        self._backend = find_backend()
        self._cuda = cuda_runtime(self._backend.name)
        self._cuda.cudaSetDevice(0)  # before TensorRT, which ends the process if CUDA does not start
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
    """Return an instance of the class that `name`, "module:class", names."""
    module, _, attribute = name.partition(":")
    machine: Any = getattr(importlib.import_module(module), attribute)
    opened: Machine = machine()
    return opened
