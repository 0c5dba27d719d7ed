"""The contract of a runtime: a declaration, and a runner that accepts token arrays and returns logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from q8trt.console.options import option
from q8trt.errors import ConfigError, DataError
from q8trt.quantization.precision import Precision

if TYPE_CHECKING:
    from q8trt.engine.manifest import Manifest
    from q8trt.engine.preflight import Problem
    from q8trt.engine.shapes import Shape

_SPECIALIZATIONS = ("lazy", "eager", "none")


@dataclass(frozen=True)
class Timing:
    """The times of one batch, in milliseconds, as trtexec defines them (TensorRT documentation, "trtexec").

    Attributes:
        h2d_ms: copies of the inputs to the device; near 0 for inputs that are already on it.
        gpu_ms: from the first kernel to the last, on the device.
        d2h_ms: copy of the logits to the host.
        enqueue_ms: the host's time in the call that launches the kernels or the CUDA graph.
        host_ms: wall time of the whole call, including the checks of the inputs and the host's copies.
        cuda_graph: whether a CUDA graph was launched; None if the library decides and does not report it.
    """

    h2d_ms: float
    gpu_ms: float
    d2h_ms: float
    enqueue_ms: float
    host_ms: float
    cuda_graph: bool | None = None


@runtime_checkable
class TimedRunner(Protocol):
    """A runner with device timings."""

    def infer_timed(self, arrays: Mapping[str, Any]) -> Timing:
        """Run one batch as `Runner.infer` does, and return its times."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a runner. A runtime ignores options that do not apply to it.

    Attributes:
        threads: threads within an operator on the CPU; None for the runtime's own choice.

    Raises:
        ConfigError: an unknown `specialization`.
    """

    threads: int | None = None
    cuda_graph: bool = option(True, "launch a shape from a CUDA graph if it occurs twice in a row")
    runtime_cache: str | None = option(
        None, "folder for the kernels that TensorRT-RTX compiles at run time", metavar="DIR", unset="beside the plan"
    )
    specialization: str = option(
        "lazy", "TensorRT-RTX compiles kernels of a new shape in the background (lazy), at once (eager) or never (none)"
    )

    def __post_init__(self) -> None:
        if self.specialization not in _SPECIALIZATIONS:
            choices = ", ".join(_SPECIALIZATIONS)
            raise ConfigError(f"specialization must be one of {choices}; got {self.specialization!r}")


@dataclass(frozen=True)
class Availability:
    """The state of a runtime on this machine.

    Attributes:
        version: the installed version; "" if none is.
        problem: why the runtime cannot run here; "" if it can.
        remedy: the command or setting that makes it usable; "" if none is known.
        detail: further information, such as the execution providers of ONNX Runtime.
    """

    version: str = ""
    problem: str = ""
    remedy: str = ""
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Return whether the runtime can run here."""
        return not self.problem


@dataclass(frozen=True)
class Capabilities:
    """The capabilities of a runtime that matter to callers.

    `TimedRunner` and `ProfiledRunner` are further capabilities. A runner has them if it has their methods.

    Attributes:
        concurrent: one runner serves any number of threads. Otherwise each thread needs a fork, see `Runner.fork`.
        fixed_shapes: only shapes within the engine's profiles are accepted.
        cuda_graphs: the runner captures CUDA graphs, and `Timing.cuda_graph` reports each launch.
        checks_ids: a token id outside the embedding table is an error, and no other memory is read.
        widens_half: FP16 tensors are computed in FP32 on the CPU.
        array_protocols: protocols of device arrays that are read in place; NumPy arrays always work.
    """

    concurrent: bool = False
    fixed_shapes: bool = False
    cuda_graphs: bool = False
    checks_ids: bool = False
    widens_half: bool = False
    array_protocols: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runtime:
    """A library that runs models.

    Attributes:
        name: the name that options, manifests and reports use, such as "onnxruntime".
        label: the name for people, such as "ONNX Runtime".
        capabilities: its abilities.
    """

    name: str
    label: str
    capabilities: Capabilities = Capabilities()

    def caveats(self, device: str, precisions: Sequence[Precision]) -> list[str]:
        """Return remarks on figures that were measured on `device` with engines of `precisions`."""
        return []


@dataclass(frozen=True)
class TritonBackend:
    """The backend of Triton Inference Server that runs the model file of a runtime and has the runtime's name.

    Attributes:
        platform: the name in ``model_config.proto``, such as "onnxruntime_onnx".
        devices: the devices that it supports: "cuda", "cpu"; the default comes first.
    """

    platform: str
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EngineRuntime(Runtime, ABC):
    """A runtime that opens engine folders.

    Attributes:
        device: the kind of device that it runs on: "cpu" or "cuda".
        model_file: the file of an engine folder that it opens.
        triton: the Triton backend that serves this file; None if Triton does not serve it.
        aliases: other spellings of `name`.
    """

    device: str
    model_file: str
    triton: TritonBackend | None = None
    aliases: tuple[str, ...] = ()

    def availability(self) -> Availability:
        """Return the state of the runtime on this machine, before a model is opened. This may import the library.

        Only runtimes for the CPU implement this method. `obstacles` checks a plan.
        """
        return Availability()

    def obstacles(self, folder: Path, manifest: Manifest, shapes: Sequence[Shape] = ()) -> list[Problem]:
        """Return the obstacles to running an engine folder here at `shapes`; [] if none is known before it is opened."""
        return []

    @abstractmethod
    def open(self, folder: Path, manifest: Manifest, options: RunOptions) -> Runner:
        """Open a verified engine folder. Raises the same errors as `q8trt.runtime.open_runner`."""


class Runner(ABC):
    """A model that is open at one precision on one device.

    Attributes:
        runtime: the library that computes.
        device: the name of the device in a report: "cpu", "NVIDIA H100 80GB HBM3".
        precision: the number formats of the model; a runtime may compute FP16 in FP32, see `Capabilities.widens_half`.
        input_names: the arrays that `infer` reads, in the model's order.
    """

    runtime: Runtime
    device: str
    precision: Precision
    input_names: tuple[str, ...]

    @property
    def backend(self) -> str:
        """The name of the runtime."""
        return self.runtime.name

    @property
    def place(self) -> str:
        """Runtime and device, such as ``"ONNX Runtime, CPU"``; reports show it with every figure of this runner."""
        return f"{self.runtime.label}, {'CPU' if self.device == 'cpu' else self.device}"

    @property
    def label(self) -> str:
        """``"ONNX Runtime, CPU, int8"``: place and precision."""
        return f"{self.place}, {self.precision}"

    @abstractmethod
    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run one batch.

        Args:
            arrays: for each of `input_names` an integer array of one common shape (batch, sequence); others are ignored.

        Returns:
            logits, float32, on the host, shape (batch, outputs), or (batch, sequence, outputs) with padding for a head that
            answers each token. A later batch does not change them.

        Raises:
            DataError: an input is missing or the shapes disagree.
            BackendError: the backend refused the batch.
            EngineError: the model's output is not numeric.
        """

    def fork(self) -> Runner:
        """Return a runner of the same model for another thread, if the runtime is not concurrent."""
        raise NotImplementedError(f"{self.runtime.label} needs no fork: one runner serves all threads")

    def close(self) -> None:  # noqa: B027 - not every runner has something to free
        """Free memory and handles; the runner cannot be used afterwards. Closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def checked(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays named by `input_names` as NumPy arrays. Raises DataError if one is missing or shapes disagree."""
        chosen = {name: np.asarray(array) for name, array in self.needed(arrays).items()}
        common_shape({name: array.shape for name, array in chosen.items()})
        return chosen

    def needed(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arrays named by `input_names`, in the model's order. Raises DataError if one is missing."""
        missing = [name for name in self.input_names if name not in arrays]
        if missing:
            raise DataError(f"the model needs the inputs {list(self.input_names)}; {missing} missing from the batch")
        return {name: arrays[name] for name in self.input_names}


def common_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the (batch, sequence) shape of a batch's inputs. Raises DataError if they differ or have other dimensions."""
    first = next(iter(shapes.values()))
    if len(set(shapes.values())) != 1 or len(first) != 2:
        raise DataError(f"inputs must share one (batch, sequence) shape; got {dict(shapes)}")
    return first
