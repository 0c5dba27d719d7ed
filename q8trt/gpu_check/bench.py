"""A bench that builds and runs engines on the GPU. Tests replace it by one with ONNX Runtime on the CPU."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from q8trt.engine.backend import find_backend
from q8trt.engine.build_process import build_plan
from q8trt.engine.config import BuildConfig, PlanInfo
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import BackendError
from q8trt.hardware.gpu import Gpu, gpus
from q8trt.quantization.precision import Precision
from q8trt.runtime import Runner, RunOptions, find_runtime
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.runtime.tensorrt.cuda import cuda_runtime
from q8trt.runtime.tensorrt.runner import TensorRTRunner
from q8trt.runtime.torch_runner import TorchRunner

if TYPE_CHECKING:
    from q8trt.gpu_check.models import Subject

CUDA = "CUDAExecutionProvider"


class Bench(Protocol):
    """A machine that the checks use. An engine folder has `ONNX_FILE` and, once built, `PLAN_FILE`.

    Attributes:
        title: the library that runs the engines, such as "TensorRT-RTX 1.7.1.116".
        device: the name of the GPU.
        captures_graphs: whether the runner must report a CUDA graph if one is requested.
    """

    title: str
    device: str
    captures_graphs: bool

    def build(self, folder: Path, profiles: tuple[ShapeProfile, ...]) -> PlanInfo:
        """Build the plan of an engine folder. Raises as `build_plan` does."""

    def open(self, folder: Path, precision: Precision, cuda_graph: bool) -> Runner:
        """Return a runner of the loaded plan, which has ``fork``, see `TensorRTRunner`. Raises EngineError, BackendError."""

    def free_bytes(self) -> int:
        """Return the free device memory, in bytes."""

    def references(self, subject: Subject, folders: dict[Precision, Path]) -> dict[str, Callable[[], Runner]]:
        """Return the references on the same GPU: row name -> function that opens the runner or raises a Q8TRTError."""


class GpuBench:
    """The first GPU, on TensorRT or TensorRT-RTX; see `Bench`.

    Args:
        backend: the name of a TensorRT package; None for the package that `find_backend` chooses.
        sm: see `BuildConfig.sm`.

    Raises:
        ConfigError: the backend is unknown, or cannot build for `sm`.
        BackendError: the GPU, the backend or cuda-python is missing, or the backend does not support this GPU.
    """

    def __init__(self, backend: str | None = None, sm: tuple[str, ...] = ()) -> None:
        installed = gpus()
        if not installed:
            raise BackendError("no NVIDIA GPU here (the driver lists none)")
        self.gpu: Gpu = installed[0]
        self._backend = find_backend(backend)
        if refusal := self._backend.refusal(self.gpu):
            raise BackendError(refusal)
        self._sm = sm
        BuildConfig(self._backend.name, sm=sm).check_supported(self._backend)
        self._cuda = cuda_runtime(self._backend.name)
        self.title, self.device = self._backend.title, self.gpu.name
        runtime = find_runtime(self._backend.name)
        self.captures_graphs = runtime is not None and runtime.capabilities.cuda_graphs

    def build(self, folder: Path, profiles: tuple[ShapeProfile, ...]) -> PlanInfo:
        """See `Bench.build`."""
        return build_plan(folder / ONNX_FILE, folder / PLAN_FILE, BuildConfig(self._backend.name, profiles, self._sm))

    def open(self, folder: Path, precision: Precision, cuda_graph: bool) -> Runner:
        """See `Bench.open`. TensorRT-RTX compiles kernels immediately, so none is compiled while others are timed."""
        options = RunOptions(cuda_graph=cuda_graph, specialization="eager")
        return TensorRTRunner(folder / PLAN_FILE, precision, self._backend.name, options=options)

    def free_bytes(self) -> int:
        """See `Bench.free_bytes`."""
        self._cuda.cudaSetDevice(0)
        return int(self._cuda.cudaMemGetInfo()[0])

    def references(self, subject: Subject, folders: dict[Precision, Path]) -> dict[str, Callable[[], Runner]]:
        """See `Bench.references`: torch in FP32 and FP16, and ONNX Runtime's CUDA provider on the float graphs."""

        def torch(precision: Precision) -> Runner:
            model = copy.deepcopy(subject.float_model)
            return TorchRunner(model.half() if precision.is_half else model, precision, "cuda:0")

        openers: dict[str, Callable[[], Runner]] = {}
        for precision in (Precision.FP32, Precision.FP16):
            openers[f"torch {precision.label}"] = functools.partial(torch, precision)
            if precision in folders:
                path = folders[precision] / ONNX_FILE
                openers[f"ONNX Runtime CUDA {precision.label}"] = functools.partial(
                    OnnxRuntimeRunner, path, precision, [CUDA]
                )
        return openers
