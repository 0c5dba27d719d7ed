"""Checks of one engine that is shared by threads, and of one that is loaded repeatedly. Neither needs torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from q8trt.errors import BackendError
from q8trt.gpu_check.journal import Outcome
from q8trt.runtime.base import Runner

#: Absolute and relative tolerance between the answers of two threads or runs, because kernels may sum in another order.
SAME = 1e-3
#: Loads after which the driver's own pools are filled.
_SETTLED = 10
_THREAD_ROUNDS = 3
MIB = 2**20


def share(runner: Any, batches: Sequence[Mapping[str, np.ndarray]], threads: int) -> Outcome[None]:
    """Run `batches` in `threads` threads, each with its own ``runner.fork()``, and compare each answer with the sequential one.

    Each thread starts at another batch and runs each batch `_THREAD_ROUNDS` times in a row, so some threads capture graphs
    while others compute. An answer is wrong if it differs by more than `SAME` + `SAME` x the largest logit of its batch.

    Raises:
        BackendError: a thread could not fork the runner or run a batch; this is the first such error.
    """
    right = [runner.infer(batch) for batch in batches]

    def work(fork: Runner, start: int) -> list[tuple[float, float]]:
        distances = []
        for turn in range(len(batches)):
            index = (start + turn) % len(batches)
            for _ in range(_THREAD_ROUNDS):
                apart = float(np.abs(fork.infer(batches[index]) - right[index]).max())
                distances.append((apart, SAME + SAME * float(np.abs(right[index]).max())))
        return distances

    with contextlib.ExitStack() as stack:
        forks = [stack.enter_context(runner.fork()) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            answers = [each for distances in pool.map(work, forks, range(threads)) for each in distances]
    wrong = sum(not apart <= allowed for apart, allowed in answers)
    largest = float(np.nanmax([apart for apart, _ in answers])) if wrong < len(answers) else None
    figure = f"{len(answers)} answers, {wrong} wrong" + (
        "" if largest is None else f", largest difference {largest:.2g}"
    )
    return Outcome(figure, not wrong, {"answers": len(answers), "wrong": wrong, "largest_difference": largest})


def repeat(once: Callable[[], None], free_bytes: Callable[[], int], loads: int, allowed_mib: float) -> Outcome[None]:
    """Call `once` repeatedly and check whether free memory shrinks after the first ten calls.

    Raises:
        BackendError: there are too few loads to show a leak.
    """
    if loads <= _SETTLED:
        raise BackendError(f"{loads} loads cannot show a leak: the first {_SETTLED} fill the driver's own pools")
    before, free = free_bytes(), []
    for _ in range(loads):
        once()
        free.append(free_bytes())
    growth = (free[_SETTLED - 1] - free[-1]) / MIB
    figure = (
        f"free device memory: {before / MIB:.0f} MiB before, {free[_SETTLED - 1] / MIB:.0f} after {_SETTLED} loads, "
        f"{free[-1] / MIB:.0f} after {loads} (growth {growth:.1f}, allowed {allowed_mib:g})"
    )
    details = {"free_mib_before": before / MIB, "free_mib_after_each": [each / MIB for each in free]}
    return Outcome(figure, growth <= allowed_mib, details | {"growth_mib": growth})
