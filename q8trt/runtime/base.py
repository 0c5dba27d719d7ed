"""The one protocol behind which every engine runs: token arrays in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from q8trt.errors import DataError


@dataclass(frozen=True)
class Timing:
    """Where the time of one batch went, in milliseconds, by the definitions of trtexec (TensorRT documentation, "trtexec").

    Attributes:
        h2d_ms: copies of the inputs to the device; near 0 where they lie there already.
        gpu_ms: from the first kernel to the last, on the device.
        d2h_ms: copy of the logits to the host.
        enqueue_ms: the host's time in the call that launches the kernels or the CUDA graph.
        host_ms: wall time of the whole call, the checks of the inputs and the host's own copies included.
        cuda_graph: whether a CUDA graph was launched; None where the library decides that by itself and does not tell.
    """

    h2d_ms: float
    gpu_ms: float
    d2h_ms: float
    enqueue_ms: float
    host_ms: float
    cuda_graph: bool | None = None

    @property
    def latency_ms(self) -> float:
        """trtexec's latency: H2D + GPU + D2H."""
        return self.h2d_ms + self.gpu_ms + self.d2h_ms


@runtime_checkable
class TimedRunner(Protocol):
    """What a runner that can time the device has besides `Runner`'s methods."""

    def infer_timed(self, arrays: Mapping[str, Any]) -> Timing:
        """Run one batch as `Runner.infer` does, and say where its time went."""


@dataclass(frozen=True)
class LayerTime:
    """What one layer of an engine took, by the backend's own profiler.

    Attributes:
        name: as the backend names it; fused layers go by names of its own.
        ms: a batch, the median over the batches profiled; layers of one name are added up.
    """

    name: str
    ms: float


@runtime_checkable
class ProfiledRunner(Protocol):
    """What a runner whose backend has a profiler has besides `Runner`'s methods."""

    def layer_times(self, arrays: Mapping[str, Any], iterations: int = 10) -> list[LayerTime]:
        """Run one batch `iterations` times, after once that is not counted; layers in the order in which they ran.

        Profiled, a batch takes longer than `Runner.infer`: the times tell shares and not latency.

        Raises:
            DataError, BackendError: as `Runner.infer`; BackendError also where the backend reports no layer.
        """


class Runner(ABC):
    """Runs one model at one precision on one device.

    Attributes:
        backend: what computes: "torch", "onnxruntime", "tensorrt" or "tensorrt_rtx".
        device: where, in words a report can print: "cpu", "NVIDIA H100 80GB HBM3".
        precision: "fp32", "fp16", "int8" or "int8+fp16".
        input_names: the arrays `infer` wants, in the model's order.
    """

    backend: str
    device: str
    precision: str
    input_names: tuple[str, ...]

    @property
    def label(self) -> str:
        """``"ONNX Runtime, CPU, int8"``: backend, device and precision, as every figure of this runner is labelled."""
        names = {
            "torch": "torch",
            "onnxruntime": "ONNX Runtime",
            "tensorrt": "TensorRT",
            "tensorrt_rtx": "TensorRT-RTX",
        }
        return (
            f"{names[self.backend]}, {self.device.upper() if self.device == 'cpu' else self.device}, {self.precision}"
        )

    @abstractmethod
    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Run one batch.

        Args:
            arrays: for each of `input_names` an integer array of one common shape (batch, sequence); others are ignored.

        Returns:
            logits, float32, shape (batch, num_labels), on the host; safe to keep.

        Raises:
            DataError: an input is missing or the shapes disagree.
            BackendError: the backend refused the batch.
        """

    def close(self) -> None:  # noqa: B027 - a runner that owns nothing has nothing to give back
        """Give back memory and handles; the runner cannot be used afterwards. Closing twice is harmless."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def checked(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays named by `input_names`, checked for presence and one common (batch, sequence) shape."""
        chosen = {name: np.asarray(array) for name, array in self.needed(arrays).items()}
        common_shape({name: array.shape for name, array in chosen.items()})
        return chosen

    def needed(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays named by `input_names`, in the model's order. Raises DataError when one is missing."""
        missing = [name for name in self.input_names if name not in arrays]
        if missing:
            raise DataError(f"the model needs the inputs {list(self.input_names)}; {missing} missing from the batch")
        return {name: arrays[name] for name in self.input_names}


def common_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The one (batch, sequence) shape of a batch's inputs. Raises DataError when they differ or have other dimensions."""
    first = next(iter(shapes.values()))
    if len(set(shapes.values())) != 1 or len(first) != 2:
        raise DataError(f"inputs must share one (batch, sequence) shape; got {dict(shapes)}")
    return first
