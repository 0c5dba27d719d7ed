"""Run a Hugging Face model as a `Runner`, the reference for engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from q8trt.console.names import one_line
from q8trt.errors import BackendError
from q8trt.models import takes_token_types
from q8trt.quantization.precision import Precision
from q8trt.runtime.base import Runner, Runtime

TORCH = Runtime("torch", "torch")
INPUTS = ("input_ids", "attention_mask")
TOKEN_TYPES = "token_type_ids"


class TorchRunner(Runner):
    """A runner of a model with a head, quantized or not, in evaluation mode and without gradients.

    Args:
        model: a `transformers` model whose output has `logits`; it is put into evaluation mode.
        precision: of the model, or its name; for reports.
        device: the device to move the model to, such as "cuda:0"; None leaves it on its device.

    Raises:
        BackendError: the device cannot be used.
    """

    runtime = TORCH

    def __init__(self, model: Any, precision: Precision | str, device: str | None = None) -> None:
        import torch

        self._torch = torch
        self.precision = Precision(precision)
        try:
            self._model: Any = (model if device is None else model.to(device)).eval()
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
            raise BackendError(f"torch cannot use device {device!r}: {one_line(error)}") from error
        self._device = next(model.parameters()).device
        cuda = self._device.type == "cuda"
        self.device = torch.cuda.get_device_name(self._device) if cuda else self._device.type
        self.input_names = INPUTS
        self._takes_token_types = takes_token_types(model.config)

    def needed(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arrays named by `input_names`, and token types if the model accepts them and `arrays` has them.

        Raises:
            DataError: one is missing.
        """
        chosen = super().needed(arrays)
        if self._takes_token_types and TOKEN_TYPES in arrays:
            chosen[TOKEN_TYPES] = arrays[TOKEN_TYPES]
        return chosen

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.infer`."""
        if self._model is None:
            raise BackendError("this torch runner is closed")
        torch = self._torch
        chosen = self.checked(arrays)
        try:
            batch = {name: torch.as_tensor(array, dtype=torch.int64).to(self._device) for name, array in chosen.items()}
            with torch.inference_mode():
                logits = self._model(**batch).logits
            return logits.float().cpu().numpy()
        except (RuntimeError, IndexError) as error:  # out of memory, a token id beyond the table
            raise BackendError(f"torch refused the batch: {one_line(error)}") from error

    def close(self) -> None:
        """Drop the model."""
        self._model = None
