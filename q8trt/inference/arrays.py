"""Check the token arrays of an app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from q8trt.engine.manifest import Manifest
from q8trt.errors import ArrayError
from q8trt.runtime.tensorrt.device_arrays import shape_of

_ON_HOST = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost


def check_arrays(arrays: Mapping[str, Any], manifest: Manifest, in_place: bool, vocabulary: int) -> dict[str, Any]:
    """Return the arrays that the model reads: those of the host as NumPy arrays, checked; those on a GPU as they are.

    The runner checks an array on a GPU, except its values: that would wait for the GPU.

    Args:
        arrays: arrays by name; others than the model's inputs are ignored.
        manifest: the engine's.
        in_place: whether the runner reads arrays on a GPU.
        vocabulary: rows of the embedding table.

    Raises:
        ArrayError: one is missing or not of integers, they do not share one shape (batch, sequence), a value is no token,
            or one is on a GPU and the engine is not.
    """
    if not isinstance(arrays, Mapping):
        raise ArrayError(f"run takes a dict of arrays by name, {manifest.inputs}; got {type(arrays).__name__}")
    if missing := [name for name in manifest.inputs if name not in arrays]:
        raise ArrayError(f"the model needs the arrays {manifest.inputs}; {missing} missing")
    chosen = {name: _host(name, arrays[name], in_place) for name in manifest.inputs}
    shapes = {name: shape_of(array) for name, array in chosen.items()}
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) != 1 or len(shape) != 2 or 0 in shape:
        raise ArrayError(f"arrays must share one shape (batch, sequence), none of it 0; got {shapes}")
    if shape[1] > manifest.model.max_position_embeddings:
        raise ArrayError(f"{shape[1]} tokens, but the model has {manifest.model.max_position_embeddings} positions")
    for name, highest in (("input_ids", vocabulary - 1), ("attention_mask", 1), ("token_type_ids", 1)):
        _check_values(name, chosen.get(name), highest)
    return chosen


def _check_values(name: str, array: Any, highest: int) -> None:
    if isinstance(array, np.ndarray) and (array.min() < 0 or array.max() > highest):
        raise ArrayError(f"{name} from {array.min()} to {array.max()}; expected 0 to {highest}")


def _host(name: str, array: Any, in_place: bool) -> Any:
    if not isinstance(array, np.ndarray) and _on_device(array):
        if not in_place:
            raise ArrayError(f"{name} is on a GPU, and this engine runs on the CPU; copy it to the host first")
        return array
    host = np.asarray(array)
    if host.dtype.kind not in "iub":
        raise ArrayError(f"{name} is {host.dtype}; token arrays are of integers, such as int32")
    return host


def _on_device(array: Any) -> bool:
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) not in _ON_HOST
    return hasattr(array, "__cuda_array_interface__")
