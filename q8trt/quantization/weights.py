"""Reading of state dicts, and loading of them into a model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from q8trt.console.names import one_line
from q8trt.errors import CheckpointError

State = dict[str, torch.Tensor]


def read_safetensors(path: Path, remedy: str) -> State:
    """Return the tensors of a file, on the CPU. Raises CheckpointError, which ends with `remedy`, if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {remedy}") from None


def load_weights(model: nn.Module, state: State, problem: str) -> None:
    """Load `state` into `model`. Raises CheckpointError, which begins with `problem`, if names or shapes differ."""
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{problem}: {one_line(error)[:300]}") from None
