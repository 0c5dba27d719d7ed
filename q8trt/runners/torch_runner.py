"""A Hugging Face model behind the `Runner` protocol: the reference that engines are measured against."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from q8trt.engine.backend import one_line
from q8trt.errors import BackendError
from q8trt.runners.base import Runner

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TorchRunner(Runner):
    """Runs a sequence classification model, quantized or not, in evaluation mode and without gradients.

    Args:
        model: a `transformers` model whose output has `logits`; put into evaluation mode.
        precision: what it computes in, for reports: see `Runner`.
        device: where to move it, such as "cuda:0"; default where it is.

    Raises:
        BackendError: the device cannot be used.
    """

    backend = "torch"

    def __init__(self, model: Any, precision: str, device: str | None = None) -> None:
        import torch

        self._torch = torch
        self.precision = precision
        try:
            self._model: Any = (model if device is None else model.to(device)).eval()
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
            raise BackendError(f"torch cannot use device {device!r}: {one_line(error)}") from error
        self._device = next(model.parameters()).device
        cuda = self._device.type == "cuda"
        self.device = torch.cuda.get_device_name(self._device) if cuda else self._device.type
        accepted = inspect.signature(model.forward).parameters
        # RoBERTa takes token_type_ids but has one type only, and its tokenizer makes none.
        types = getattr(model.config, "type_vocab_size", 2)
        self.input_names = tuple(name for name in INPUTS if name in accepted and (name != INPUTS[2] or types > 1))

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
