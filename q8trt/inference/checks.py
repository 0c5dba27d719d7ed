"""Checks of a manifest against its tokenizer and model, and of an app's token arrays against the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.manifest import MANIFEST_FILE, Manifest
from q8trt.errors import ArrayError, BackendError, DataError, EngineError
from q8trt.files import MalformedError, read_json
from q8trt.inference.batching import BatchLimits
from q8trt.inference.pool import RunnerPool
from q8trt.runtime.tensorrt.device_arrays import is_on_device, shape_of
from q8trt.tasks.data.tokenizer_file import TOKENIZER_CONFIG, TOKENIZER_FILE

#: Maximum length of the trial batch in tokens, so that it takes only milliseconds.
_TRIED = 512


def check_tokenizer(folder: Path, manifest: Manifest, tokenizer: Any) -> None:
    """Raise EngineError if ``model.pad_token_id`` is not the tokenizer's padding."""
    number = manifest.model.pad_token_id
    if tokenizer.id_to_token(number) is None:
        raise EngineError(
            f"{folder / MANIFEST_FILE} says that model.pad_token_id is {number}, but {TOKENIZER_FILE} has no such token"
        )
    path = folder / TOKENIZER_CONFIG
    try:
        settings = read_json(path) if path.exists() else {}
    except (OSError, MalformedError) as error:
        raise EngineError(f"{path} cannot be read: {error}") from None
    pad = settings.get("pad_token") if isinstance(settings, dict) else None
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if isinstance(pad, str) and tokenizer.token_to_id(pad) != number:
        raise EngineError(
            f"{folder / MANIFEST_FILE} says that model.pad_token_id is {number}, but {TOKENIZER_CONFIG} names {pad!r}, "
            f"which is {tokenizer.token_to_id(pad)}"
        )


def check_model(folder: Path, manifest: Manifest, pool: RunnerPool, limits: BatchLimits, vocabulary: int) -> None:
    """Run a trial batch; raise EngineError if the model does not fit the manifest and the tokenizer.

    The batch has the longest length, up to `_TRIED`, and the last token of the vocabulary. For a runtime that does not check
    ids, it has the shortest length and padding, because another id could be outside the embedding table.
    """
    names, outputs = pool.first.input_names, manifest.model.num_labels
    if set(names) != set(manifest.inputs):
        raise EngineError(
            f"{folder / MANIFEST_FILE} says that the inputs are {', '.join(manifest.inputs)}, but the model has "
            f"{', '.join(names)}"
        )
    checked = pool.first.runtime.capabilities.checks_ids
    length = min(limits.max_length, _TRIED) if checked else limits.buckets[0]
    ids = np.full((limits.min_batch, length), vocabulary - 1 if checked else manifest.model.pad_token_id, np.int32)
    types = np.zeros_like(ids)
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
    try:
        with pool.runner() as runner:
            logits = runner.infer({name: arrays[name] for name in names})
    except (BackendError, DataError) as error:
        raise EngineError(
            f"{folder}: the model does not take {length} tokens of this tokenizer, of {vocabulary} ids: {error}"
        ) from None
    shape = (*ids.shape, outputs) if manifest.head.kind.per_token else (len(ids), outputs)
    if logits.shape != shape:
        raise EngineError(
            f"{folder / MANIFEST_FILE} says that model.num_labels is {outputs}, but the model answers logits of shape "
            f"{logits.shape} to {len(ids)} rows of {length} tokens; expected {shape}"
        )


def check_arrays(arrays: Mapping[str, Any], manifest: Manifest, in_place: bool, vocabulary: int) -> dict[str, Any]:
    """Return the arrays that the model reads: host arrays as checked NumPy arrays, GPU arrays unchanged.

    The runner checks GPU arrays, but not their values, because that would wait for the GPU.

    Args:
        arrays: arrays by name; names that are not inputs of the model are ignored.
        manifest: the engine's manifest.
        in_place: whether the runner reads arrays on a GPU.
        vocabulary: rows of the embedding table.

    Raises:
        ArrayError: an array is missing, does not contain integers, or is on a GPU while the engine is not; the arrays do not
            share one shape (batch, sequence); or a value is out of range.
    """
    if not isinstance(arrays, Mapping):
        raise ArrayError(f"expected a dict of arrays by name, {manifest.inputs}; got {type(arrays).__name__}")
    if missing := [name for name in manifest.inputs if name not in arrays]:
        raise ArrayError(f"the model needs the arrays {manifest.inputs}; {missing} missing")
    chosen = {name: _host(name, arrays[name], in_place) for name in manifest.inputs}
    shapes = {name: shape_of(array) for name, array in chosen.items()}
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) != 1 or len(shape) != 2 or 0 in shape:
        raise ArrayError(f"arrays must share one shape (batch, sequence) without 0; got {shapes}")
    if shape[1] > manifest.model.max_position_embeddings:
        raise ArrayError(f"{shape[1]} tokens, but the model has {manifest.model.max_position_embeddings} positions")
    for name, highest in (("input_ids", vocabulary - 1), ("attention_mask", 1), ("token_type_ids", 1)):
        _check_values(name, chosen.get(name), highest)
    return chosen


def _check_values(name: str, array: Any, highest: int) -> None:
    if isinstance(array, np.ndarray) and (array.min() < 0 or array.max() > highest):
        raise ArrayError(f"{name} from {array.min()} to {array.max()}; expected 0 to {highest}")


def _host(name: str, array: Any, in_place: bool) -> Any:
    if is_on_device(array):
        if not in_place:
            raise ArrayError(f"{name} is on a GPU, and this engine runs on the CPU; copy it to the host first")
        return array
    host = np.asarray(array)
    if host.dtype.kind not in "iub":
        raise ArrayError(f"{name} is {host.dtype}; expected integers, such as int32")
    return host
