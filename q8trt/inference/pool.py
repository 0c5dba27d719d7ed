"""A pool of runners of one engine for many threads. Each batch borrows a runner, and `close` waits for borrowed runners.

A fork copies the memory of an engine but not its threads, so a batch in the child would wait forever. Therefore the copy in the
child is marked at the fork and raises ClosedError on every use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator

from q8trt.errors import ClosedError
from q8trt.runtime.base import Runner

CLOSED = "this engine is closed; load it again: Engine.load(folder)"
FORKED = (
    "this engine was opened before this process was forked, and cannot run here; load it again: Engine.load(folder)"
)


class RunnerPool:
    """A pool of runners of one model.

    Args:
        runners: open runners of the same model, which the pool closes.
        shared: whether one runner serves all threads at the same time. Otherwise, each serves one thread, and others wait.

    Attributes:
        forked: whether this is the copy of a pool in a forked process.
    """

    def __init__(self, runners: list[Runner], shared: bool) -> None:
        self.first = runners[0]
        self._runners, self._idle, self._shared = runners, list(runners), shared
        self._users = 0
        self._closed = self.forked = False
        self._changed = threading.Condition()
        _POOLS.add(self)

    @contextlib.contextmanager
    def runner(self) -> Iterator[Runner]:
        """Yield a runner, which no other thread uses unless it is shared. Raises ClosedError after `close`."""
        self.check_open()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._shared or self._idle)
            self.check_open()
            runner = self.first if self._shared else self._idle.pop()
            self._users += 1
        try:
            yield runner
        finally:
            with self._changed:
                self._users -= 1
                if not self._shared:
                    self._idle.append(runner)
                self._changed.notify_all()
                self._close_unused()

    def check_open(self) -> None:
        """Raise ClosedError after `close`, and in a forked process."""
        if self.forked:
            raise ClosedError(FORKED)
        if self._closed:
            raise ClosedError(CLOSED)

    def close(self, wait: bool = True) -> None:
        """Reject new batches, and close every runner after the running batches. It is safe to close twice.

        Args:
            wait: whether to return after the runners are closed. Otherwise, the last running batch closes them.
        """
        if self.forked:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if wait:
                self._changed.wait_for(lambda: self._users == 0)
            self._close_unused()

    def _close_unused(self) -> None:
        if self._closed and not self._users:
            runners, self._runners = self._runners, []
            for runner in reversed(runners):
                runner.close()

    def _after_fork(self) -> None:
        """Mark the child's copy, and keep its runners forever, because their destruction would wait for missing threads."""
        self.forked, self._changed = True, threading.Condition()
        for runner in self._runners:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(runner))


_POOLS: weakref.WeakSet[RunnerPool] = weakref.WeakSet()


def _mark_copies() -> None:
    for pool in list(_POOLS):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_copies)
