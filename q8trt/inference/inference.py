"""Token ids -> logits and answers: batches of like lengths, on runners that several threads share."""

from __future__ import annotations

from typing import Any

import numpy as np

from q8trt.engine.manifest import Manifest
from q8trt.inference.answers import answers
from q8trt.inference.batching import Limits, in_parallel
from q8trt.inference.pool import RunnerPool
from q8trt.inference.text import Tokens
from q8trt.tasks.data.batches import Batch, bucketed_batches, restore_order

#: Token ids of one example, and its token types or None.
Row = tuple[list[int], list[int] | None]


class Inference:
    """The part of an `Engine` that its batch thread uses. It does not refer to the engine, which can so be collected.

    Args:
        pool: the runners.
        manifest: the engine's.
        limits: lengths and batch sizes.
        contexts: batches of one call that run at the same time.
    """

    def __init__(self, pool: RunnerPool, manifest: Manifest, limits: Limits, contexts: int) -> None:
        self.pool, self.limits = pool, limits
        self._task, self._pad_token_id, self._contexts = manifest.task, manifest.model.pad_token_id, contexts

    def answers(self, rows: list[Row]) -> list[Any]:
        """Return the task's answer to each row of token ids."""
        types = [types for _, types in rows if types is not None]
        return answers(self.logits(Tokens([ids for ids, _ in rows], types or None, 0)), self._task)

    def logits(self, tokens: Tokens) -> np.ndarray:
        """Return float32 logits, (rows, labels), in order."""
        limits = self.limits
        batches = bucketed_batches(tokens, limits.batch_size, self._pad_token_id, limits.buckets)
        if len(tokens) <= limits.batch_size:
            parts = [self._infer(batch) for batch in batches]
        else:
            parts = in_parallel(self._infer, batches, self._contexts)
        return restore_order(*zip(*parts, strict=True))

    def _infer(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of a batch, and the places of its rows."""
        with self.pool.runner() as runner:
            return runner.infer(self.limits.fill(batch.arrays))[: len(batch.indices)], batch.indices
