"""One opened engine for many threads: each batch borrows a runner, and closing waits for those that are out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from q8trt.errors import ClosedError
from q8trt.runners.base import Runner

CLOSED = "this engine is closed; load it again: Engine.load(folder)"


class RunnerPool:
    """Lends runners of one model.

    Args:
        runners: opened runners of the same model, which the pool closes.
        shared: one runner serves any number of threads at once, as ONNX Runtime's session does; else each is lent to one
            thread at a time, and who finds none waits.
    """

    def __init__(self, runners: list[Runner], shared: bool) -> None:
        self.first = runners[0]
        self._runners, self._idle, self._shared = runners, list(runners), shared
        self._users = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def runner(self) -> Iterator[Runner]:
        """A runner for the block. Raises ClosedError after `close`."""
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

    def check_open(self) -> None:
        """Raise ClosedError after `close`."""
        if self._closed:
            raise ClosedError(CLOSED)

    def close(self) -> None:
        """Refuse new batches, wait for those under way, then close every runner. Closing twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._users == 0)
            runners, self._runners = self._runners, []
        for runner in reversed(runners):
            runner.close()
