"""Scores of a runner on the rows of a task, computed in the same way for every runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from q8trt.errors import DataError
from q8trt.runtime.base import Runner
from q8trt.tasks.data import Features, bucketed_batches, restore_order, restore_tokens
from q8trt.tasks.data.batches import DEFAULT_BUCKETS, Batch
from q8trt.tasks.scoring import score


@dataclass(frozen=True)
class Evaluation:
    """The scores of one runner on one split.

    Attributes:
        metrics: the task's metrics, as fractions.
        logits: float32, shape (rows, outputs) in the order of the rows, or (tokens, outputs) for a head that answers each token.
        seconds: wall time inside `Runner.infer`, summed over the batches.
    """

    metrics: dict[str, float]
    logits: np.ndarray
    seconds: float


def predict(
    runner: Runner,
    features: Features,
    pad_token_id: int,
    max_length: int,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
) -> tuple[np.ndarray, float]:
    """Return the logits of all rows as `infer_all` does, and the seconds inside the runner.

    Rows are sorted by length. Each batch is padded to the smallest of `buckets` that fits it; the largest is `max_length`.
    """
    return infer_all(runner, bucketed_batches(features, batch_size, pad_token_id, buckets, max_length), on_progress)


def infer_all(
    runner: Runner, batches: Iterable[Batch], on_progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, float]:
    """Return the logits of all rows of `batches`, float32 (rows, outputs) in order, and the seconds inside the runner.

    For a head that answers each token, they are (tokens, outputs) without padding, see `q8trt.tasks.scoring`.
    """
    chunks: list[np.ndarray] = []
    order: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    seconds = 0.0
    for batch in batches:
        started = time.perf_counter()
        chunks.append(runner.infer(batch.arrays))
        seconds += time.perf_counter() - started
        order.append(batch.indices)
        masks.append(batch.arrays["attention_mask"])
        if on_progress:
            on_progress(len(batch.indices))
    if chunks and chunks[0].ndim == 3:
        return restore_tokens(chunks, masks, order), seconds
    return restore_order(chunks, order), seconds


def evaluate(
    runner: Runner,
    features: Features,
    pad_token_id: int,
    max_length: int,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    activation: str = "identity",
    reference: np.ndarray | None = None,
) -> Evaluation:
    """Score `runner` on `features` with the metrics of their task; `activation` as in `compute_from_logits`.

    Args:
        reference: the FP32 model's outputs, shaped as `Evaluation.logits`, for a task whose rows have no labels; None if the
            runner runs the FP32 model itself.

    Raises:
        DataError: the features have no labels and the task needs them, or the logits are not finite.
        BackendError: the runner refused a batch.
    """
    if features.labels is None and features.task.has_labels:
        raise DataError(f"{features.split} has no labels, so nothing can be scored on it")
    logits, seconds = predict(runner, features, pad_token_id, max_length, batch_size, on_progress, buckets)
    return Evaluation(score(features, logits, reference, activation), logits, seconds)
