"""The declarations of TensorRT and TensorRT-RTX. Importing them imports neither package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from q8trt.engine.backend import INSTALL, TITLES, find_backend
from q8trt.engine.driver import driver_problem
from q8trt.engine.manifest import PLAN_FILE, Manifest
from q8trt.engine.preflight import Problem, needs_host_code, preflight
from q8trt.engine.shapes import Shape
from q8trt.errors import BackendError, MissingPackageError
from q8trt.hardware.gpu import gpus
from q8trt.runtime.base import Availability, Capabilities, EngineRuntime, Runner, RunOptions, TritonBackend


class TensorRT(EngineRuntime):
    """One of the two packages, which offer the same API."""

    def availability(self) -> Availability:
        """See `EngineRuntime.availability`."""
        try:
            backend = find_backend(self.name)
        except MissingPackageError as error:
            return Availability(problem=error.problem, remedy=error.command)
        except BackendError as error:
            return Availability(problem=str(error))
        cards, version = gpus(), backend.version
        if not cards:
            return Availability(version, f"{self.label} needs an NVIDIA GPU and its driver")
        if importlib.util.find_spec("cuda") is None:
            return Availability(version, "cuda-python is not installed", INSTALL[self.name])
        return Availability(version, str(driver_problem(self.name, backend.title) or backend.refusal(cards[0]) or ""))

    def obstacles(self, folder: Path, manifest: Manifest, shapes: Sequence[Shape] = ()) -> list[Problem]:
        """See `EngineRuntime.obstacles`."""
        return preflight(folder, self.name, shapes, verify=False)

    def open(self, folder: Path, manifest: Manifest, options: RunOptions) -> Runner:
        """See `EngineRuntime.open`."""
        from q8trt.runtime.tensorrt.runner import TensorRTRunner

        plan, host_code = folder / PLAN_FILE, needs_host_code(manifest)
        return TensorRTRunner(plan, manifest.precision, self.name, options=options, host_code=host_code)


_PROTOCOLS = ("DLPack", "__cuda_array_interface__")
TENSORRT = TensorRT(
    "tensorrt",
    TITLES["tensorrt"],
    Capabilities(fixed_shapes=True, cuda_graphs=True, array_protocols=_PROTOCOLS),
    device="cuda",
    model_file=PLAN_FILE,
    triton=TritonBackend("tensorrt_plan", ("cuda",)),
    aliases=("trt",),
)
#: It launches from CUDA graphs of its own and does not report them.
TENSORRT_RTX = TensorRT(
    "tensorrt_rtx",
    TITLES["tensorrt_rtx"],
    Capabilities(fixed_shapes=True, array_protocols=_PROTOCOLS),
    device="cuda",
    model_file=PLAN_FILE,
    aliases=("rtx", "trt_rtx"),
)
