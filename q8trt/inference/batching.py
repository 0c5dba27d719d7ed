"""Batches of token ids of similar length, and their logits and answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from q8trt.engine.manifest import Manifest
from q8trt.engine.shapes import ShapeProfile, covering, show_profiles
from q8trt.errors import ConfigError
from q8trt.inference.answers import answers
from q8trt.inference.pool import RunnerPool
from q8trt.inference.text import Tokens
from q8trt.tasks.data.batches import DEFAULT_BUCKETS, Batch, Tokenized, bucketed_batches, restore_order, restore_tokens
from q8trt.tasks.scoring import split_rows

#: Default rows of a batch. A GPU needs many rows. A CPU is as fast with few, and pads less.
_ROWS_OF_PLAN, _ROWS_ON_CPU = 32, 8

T = TypeVar("T")
R = TypeVar("R")
#: Token ids of one example, and its token types or None.
Row = tuple[list[int], list[int] | None]


@dataclass(frozen=True)
class BatchLimits:
    """The lengths and sizes of batches.

    Attributes:
        max_length: maximum tokens of an example; longer ones are cut.
        buckets: ascending lengths in tokens to which batches are padded; the last one is at least `max_length`.
        batch_size: maximum rows of a batch.
        min_batch: minimum rows of a batch, above 1 only if a plan does not accept fewer.
    """

    max_length: int
    buckets: tuple[int, ...]
    batch_size: int
    min_batch: int = 1

    def fill(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return `arrays` (B, S) with the last row repeated until there are `min_batch` rows."""
        missing = self.min_batch - len(arrays["input_ids"])
        if missing <= 0:
            return arrays
        return {name: np.pad(array, ((0, missing), (0, 0)), mode="edge") for name, array in arrays.items()}


def batch_limits(
    manifest: Manifest, fixed_shapes: bool, buckets: Sequence[int] | None, batch_size: int | None = None
) -> BatchLimits:
    """Return the limits of an engine.

    All runtimes cut examples at the length that training and the plan allow, so they give the same answers.

    Args:
        manifest: the engine's manifest.
        fixed_shapes: whether the runtime accepts only the shapes of the plan's profiles.
        buckets: ascending lengths in tokens to which batches are padded. None for those of the profiles and the default ones
            between them or, with free shapes, for the longest row of each batch.
        batch_size: maximum rows of a batch; None for the default.

    Raises:
        ConfigError: a bucket or the batch size is not positive, or exceeds the limits of model and plan.
    """
    if batch_size is None:
        batch_size = _ROWS_OF_PLAN if fixed_shapes else _ROWS_ON_CPU
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more, got {batch_size}")
    longest = manifest.model.max_seq_length
    if shape := manifest.largest_shape:
        longest = min(longest, shape[1])
    profiles = manifest.profiles if fixed_shapes else []
    batch_size = min([batch_size, *(profile.max[0] for profile in profiles)])
    min_batch = max([1, *(profile.min[0] for profile in profiles)])
    if buckets is None:
        return BatchLimits(longest, _default_buckets(profiles, longest, batch_size), batch_size, min_batch)
    chosen = tuple(buckets)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 1:
        raise ConfigError(f"buckets must be ascending lengths in tokens, such as (32, 64, 128); got {chosen}")
    for bucket in chosen:
        if bucket > longest or (profiles and covering(profiles, (batch_size, bucket)) is None):
            limit = f"the plan takes {show_profiles(profiles)}" if profiles else f"the engine takes up to {longest}"
            raise ConfigError(f"bucket {bucket} cannot run: {limit}, and the model was trained at {longest}")
    return BatchLimits(chosen[-1], chosen, batch_size, min_batch)


def _default_buckets(profiles: Sequence[ShapeProfile], longest: int, batch: int) -> tuple[int, ...]:
    if not profiles:
        return tuple(range(1, longest + 1))  # every length can run, and padding would cost time
    lengths = {*DEFAULT_BUCKETS, longest, *(profile.max[1] for profile in profiles)}
    taken = sorted(length for length in lengths if covering(profiles, (batch, length)) is not None)
    enough = next((length for length in taken if length >= longest), None)
    if enough is None:
        raise ConfigError(f"no profile takes a batch of {longest} tokens: {show_profiles(profiles)}")
    return tuple(length for length in taken if length <= enough)


class BatchedModel:
    """A model that answers any number of rows in batches. It is safe to use from many threads.

    The batch thread refers to this object, so it must not refer to the `Engine`, which could not be collected then.

    Args:
        pool: the runners.
        manifest: the engine's manifest.
        limits: lengths and batch sizes.
        contexts: number of batches of one call that run at the same time.
    """

    def __init__(self, pool: RunnerPool, manifest: Manifest, limits: BatchLimits, contexts: int) -> None:
        self.pool, self.limits = pool, limits
        self._kind = manifest.head.kind
        self._task, self._pad_token_id, self._contexts = manifest.task, manifest.model.pad_token_id, contexts

    def answers(self, rows: list[Row]) -> list[Any]:
        """Return the answer to each row.

        It is an embedding (dimension,), logits (tokens, outputs) of a head for tokens, a logit (1,) of a score, an `Answer`
        or a `LabelSet`.
        """
        types = [types for _, types in rows if types is not None]
        tokens = Tokens([ids for ids, _ in rows], types or None, 0)
        logits = self.logits(tokens)
        if self._kind.per_token:
            return [*split_rows(logits, tokens.lengths)]
        return answers(logits, self._task, self._kind) if self._kind.has_labels else list(logits)

    def logits(self, tokens: Tokenized) -> np.ndarray:
        """Return float32 logits in order: (rows, outputs), or (tokens, outputs) of a head for tokens."""
        limits = self.limits
        batches = bucketed_batches(tokens, limits.batch_size, self._pad_token_id, limits.buckets)
        if len(tokens) <= limits.batch_size:
            parts = [self._infer(batch) for batch in batches]
        else:
            parts = in_parallel(self._infer, batches, self._contexts)
        chunks, masks, indices = zip(*parts, strict=True)
        return restore_tokens(chunks, masks, indices) if chunks[0].ndim == 3 else restore_order(chunks, indices)

    def _infer(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the logits of a batch, its attention mask, and the indices of its rows."""
        with self.pool.runner() as runner:
            logits = runner.infer(self.limits.fill(batch.arrays))[: len(batch.indices)]
            return logits, batch.arrays["attention_mask"], batch.indices


def in_parallel(function: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """Apply `function` to each item in `workers` threads, and return the results in order. At most 2 * `workers` items wait."""
    done: list[R] = []
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        for item in items:
            if len(waiting) == 2 * workers:
                done.append(waiting.popleft().result())
            waiting.append(threads.submit(function, item))
        return done + [future.result() for future in waiting]
