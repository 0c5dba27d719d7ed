"""The lengths and batch sizes that an engine is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from q8trt.engine.manifest import Manifest
from q8trt.engine.shapes import ShapeProfile, covering, show_profiles
from q8trt.errors import ConfigError
from q8trt.tasks.data.batches import DEFAULT_BUCKETS

#: Rows of a batch where none are asked for. A GPU wants many; a CPU is as quick with few, and pads less.
DEFAULT_BATCH = {"plan": 32, "cpu": 8}

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Limits:
    """What batches look like.

    Attributes:
        max_length: tokens per example; longer ones are cut.
        buckets: lengths that batches are padded to, ascending; the last one holds `max_length`.
        batch_size: rows of a batch, at most.
        min_batch: rows of a batch, at least; 1 but for a plan that takes no fewer.
    """

    max_length: int
    buckets: tuple[int, ...]
    batch_size: int
    min_batch: int = 1

    def fill(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """`arrays` with the last row repeated until there are `min_batch`."""
        missing = self.min_batch - len(arrays["input_ids"])
        if missing <= 0:
            return arrays
        return {name: np.pad(array, ((0, missing), (0, 0)), mode="edge") for name, array in arrays.items()}


def limits(manifest: Manifest, plan: bool, buckets: Sequence[int] | None, batch_size: int | None = None) -> Limits:
    """The limits of an engine.

    An example is as long as the model was trained for and the plan takes, on whatever backend: so that all of them give
    the same answers.

    Args:
        manifest: the engine's.
        plan: whether the plan runs, which takes the shapes of its profiles and no other.
        buckets: lengths to pad to; None for those of the plan's profiles and the usual ones between them, or without a
            plan no padding but to the longest row.
        batch_size: rows of a batch, at most; None for the best that is known.

    Raises:
        ConfigError: a bucket or the batch size is not positive, or beyond what model and plan take.
    """
    if batch_size is None:
        batch_size = DEFAULT_BATCH["plan" if plan else "cpu"]
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more, got {batch_size}")
    longest = manifest.model.max_seq_length
    if shape := manifest.largest_shape:
        longest = min(longest, shape[1])
    profiles = manifest.profiles if plan else []
    batch_size = min([batch_size, *(profile.max[0] for profile in profiles)])
    min_batch = max([1, *(profile.min[0] for profile in profiles)])
    if buckets is None:
        return Limits(longest, _default_buckets(profiles, longest, batch_size), batch_size, min_batch)
    chosen = tuple(buckets)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 1:
        raise ConfigError(f"buckets must be ascending lengths in tokens, such as (32, 64, 128); got {chosen}")
    for bucket in chosen:
        if bucket > longest or (profiles and not _takes(profiles, batch_size, bucket)):
            taken = f"the plan takes {show_profiles(profiles)}" if profiles else f"the engine takes up to {longest}"
            raise ConfigError(f"bucket {bucket} cannot run: {taken}, and the model was trained at {longest}")
    return Limits(chosen[-1], chosen, batch_size, min_batch)


def in_parallel(function: Callable[[T], R], batches: Iterable[T], workers: int) -> list[R]:
    """`function` of each batch in `workers` threads; the results in order. Few batches are made before they are needed."""
    done: list[R] = []
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        for batch in batches:
            if len(waiting) == 2 * workers:
                done.append(waiting.popleft().result())
            waiting.append(threads.submit(function, batch))
        return done + [future.result() for future in waiting]


def _takes(profiles: Sequence[ShapeProfile], batch: int, length: int) -> bool:
    return covering(profiles, (batch, length)) is not None


def _default_buckets(profiles: Sequence[ShapeProfile], longest: int, batch: int) -> tuple[int, ...]:
    if not profiles:
        return tuple(range(1, longest + 1))  # any length runs as it is, and padding is work
    lengths = {*DEFAULT_BUCKETS, longest, *(profile.max[1] for profile in profiles)}
    taken = sorted(length for length in lengths if _takes(profiles, batch, length))
    enough = next((length for length in taken if length >= longest), None)
    if enough is None:
        raise ConfigError(f"no profile takes a batch of {longest} tokens: {show_profiles(profiles)}")
    return tuple(length for length in taken if length <= enough)
