"""The throughput of a data set with length buckets and without, in one interleaved run.

With buckets, rows are sorted by length, and each batch is padded to the smallest bucket that fits it
(`q8trt.tasks.data.bucketed_batches`). Without buckets, every batch is padded to the longest length. Batches of both kinds and of
all runners take turns, so that the ratio is reliable on a noisy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from q8trt.runtime.base import Runner
from q8trt.runtime.timing.latency import Clock, Stopwatch, turns
from q8trt.tasks.data import Features, bucketed_batches
from q8trt.tasks.data.batches import DEFAULT_BUCKETS, Batch, buckets_up_to


@dataclass(frozen=True)
class Lengths:
    """One runner's throughput on a data set.

    Attributes:
        rows: rows that were run, `batch_size` at a time: all of the split, or those of evenly spaced batches.
        buckets: the lengths allowed, in tokens; `fixed` is the length without buckets.
        mean_tokens: mean tokens of a row before padding.
        bucket_samples_per_s: rows over the sum of the queries' host wall times, with buckets.
        fixed_samples_per_s: the same, with every batch padded to `fixed`.
    """

    rows: int
    batch_size: int
    buckets: tuple[int, ...]
    fixed: int
    mean_tokens: float
    bucket_samples_per_s: float
    fixed_samples_per_s: float

    @property
    def ratio(self) -> float:
        """Throughput with buckets over throughput at fixed length."""
        return self.bucket_samples_per_s / self.fixed_samples_per_s


def evenly_spaced(features: Features, count: int) -> Features:
    """Return at most `count` rows, evenly spaced over the split, in its order."""
    if count >= len(features):
        return features
    return features.select(np.linspace(0, len(features) - 1, count).round().astype(int).tolist())


def evenly_spaced_batches(features: Features, batch_size: int, count: int) -> Features:
    """Return the rows of at most `count` batches of the split, sorted by length and evenly spaced.

    Batched again, these rows make the same batches. A few rows over all lengths would make batches of very different lengths,
    which are mostly padding, and buckets would seem worse than they are.
    """
    order = np.argsort(features.lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if count >= len(batches):
        return features
    middles = [int((part + 0.5) * len(batches) / count) for part in range(count)]
    return features.select(np.concatenate([batches[index] for index in middles]).tolist())


def _warm(runners: Sequence[Runner], batches: Sequence[Batch], clock: Clock) -> float:
    """Run one batch of each shape on each runner; return the seconds that all runners need for the last, longest batch."""
    shapes = {batch.arrays["input_ids"].shape: batch for batch in batches}
    for batch in shapes.values():
        for runner in runners:
            runner.infer(batch.arrays)
    started = clock()
    for runner in runners:
        runner.infer(batches[-1].arrays)
    return clock() - started


def measure_lengths(
    runners: Sequence[Runner],
    features: Features,
    pad_token_id: int,
    max_length: int,
    batch_size: int = 32,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    max_seconds: float = 60.0,
    on_progress: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> list[Lengths]:
    """Time `features` on each of `runners`, with length buckets and at `max_length` throughout.

    Args:
        runners: runners that accept `batch_size` rows of `max_length` tokens.
        features: rows of at most `max_length` tokens.
        pad_token_id: the token of the padding.
        max_length: the fixed length, and the longest bucket.
        batch_size: rows in a batch; the last batch may be smaller.
        buckets: lengths allowed; those above `max_length` are left out.
        max_seconds: limit of the time. If all batches are estimated to take longer, evenly spaced batches (at least 2) are
            timed instead.
        on_progress: called with a number of rows; they add up to the rows of `features`.
        clock: seconds, monotonic.

    Returns:
        one `Lengths` per runner, in order.
    """
    allowed = buckets_up_to(max_length, buckets)
    probe = list(bucketed_batches(features.take(batch_size), batch_size, pad_token_id, (max_length,)))
    per_batch = 2 * _warm(runners, probe, clock)  # an upper bound, with buckets and without
    affordable = max(2, int(max_seconds / per_batch)) if per_batch > 0 else len(features)
    rows = evenly_spaced_batches(features, batch_size, affordable)
    kinds = [list(bucketed_batches(rows, batch_size, pad_token_id, lengths)) for lengths in (allowed, (max_length,))]
    for batches in kinds:
        _warm(runners, batches, clock)
    watches = [[Stopwatch(runner, clock) for runner in runners] for _ in kinds]
    for number, pair in enumerate(zip(*kinds, strict=True)):
        for turn in turns(2 * len(runners), number):
            kind, index = divmod(turn, len(runners))
            watches[kind][index].query(pair[kind].arrays)
        if on_progress:
            on_progress(len(pair[0].indices))
    if on_progress and len(rows) < len(features):
        on_progress(len(features) - len(rows))
    rates = [[len(rows) / sum(watch.seconds) for watch in row] for row in watches]
    mean = float(rows.lengths.mean())
    return [
        Lengths(len(rows), batch_size, allowed, max_length, mean, bucketed, fixed)
        for bucketed, fixed in zip(*rates, strict=True)
    ]
