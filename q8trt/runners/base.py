"""The one protocol behind which every engine runs: token arrays in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType

import numpy as np

from q8trt.errors import DataError


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
        missing = [name for name in self.input_names if name not in arrays]
        if missing:
            raise DataError(f"the model needs the inputs {list(self.input_names)}; {missing} missing from the batch")
        chosen = {name: np.asarray(arrays[name]) for name in self.input_names}
        shapes = {name: array.shape for name, array in chosen.items()}
        if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
            raise DataError(f"inputs must share one (batch, sequence) shape; got {shapes}")
        return chosen
