"""Check a manifest against the files that it describes: tokenizer, and graph or plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.manifest import MANIFEST_FILE, Manifest
from q8trt.errors import BackendError, DataError, EngineError
from q8trt.files import MalformedError, read_json
from q8trt.inference.batching import BatchLimits
from q8trt.inference.pool import RunnerPool
from q8trt.tasks.data.tokenizer_file import TOKENIZER_CONFIG, TOKENIZER_FILE

#: The longest sequence of the trial batch, which must take milliseconds.
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
    """Run one batch of the longest length, of the last token of the vocabulary, and raise EngineError if it does not fit.

    A runtime that does not check ids gets the shortest length, and padding: it would read outside its embedding table.
    """
    names = pool.first.input_names
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
    if logits.shape != (len(ids), manifest.model.num_labels):
        raise EngineError(
            f"{folder / MANIFEST_FILE} says that model.num_labels is {manifest.model.num_labels}, but the model answers "
            f"logits of shape {logits.shape} to {len(ids)} rows"
        )
