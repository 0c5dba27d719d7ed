"""Dynamic micro-batching: requests that come one by one, from any thread or event loop, run together.

A request waits until `max_batch` rows are there or `max_wait_ms` have passed since the first of them came. While a
batch runs, the next one gathers, so under load nothing waits in vain.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from q8trt.app.pool import CLOSED
from q8trt.errors import ClosedError, ConfigError

Row = tuple[str, ...]


@dataclass
class _Request:
    rows: list[Row]
    future: Future[list[Any]] = field(default_factory=Future)


class MicroBatcher:
    """A thread that runs `answer` on the rows of several requests at once.

    Args:
        answer: rows -> one answer for each, in order.
        max_batch: rows that are enough to start; a request is never split, so a batch may be larger.
        max_wait_ms: how long the first request of a batch waits for others, in milliseconds.

    Raises:
        ConfigError: `max_batch` is below 1 or `max_wait_ms` negative.
    """

    def __init__(self, answer: Callable[[Sequence[Row]], list[Any]], max_batch: int, max_wait_ms: float) -> None:
        if max_batch < 1 or not max_wait_ms >= 0:
            raise ConfigError(f"max_batch must be 1 or more and max_wait_ms 0 or more; got {max_batch}, {max_wait_ms}")
        self._answer, self._max_batch, self._max_wait = answer, max_batch, max_wait_ms / 1000
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, rows: list[Row]) -> Future[list[Any]]:
        """Queue `rows`; the future gives their answers. Raises ClosedError after `close`."""
        request = _Request(rows)
        with self._lock:
            if self._closed:
                raise ClosedError(CLOSED)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="q8trt-microbatch", daemon=True)
                self._thread.start()
            self._requests.put(request)
        return request.future

    def close(self) -> None:
        """Answer what is queued, then end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._requests.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        while (first := self._requests.get()) is not None:
            batch, more = self._gather(first)
            self._run(batch)
            if not more:
                return

    def _gather(self, first: _Request) -> tuple[list[_Request], bool]:
        """The requests that run together, and whether others may follow."""
        batch, rows = [first], len(first.rows)
        until = time.monotonic() + self._max_wait
        while rows < self._max_batch:
            try:
                request = self._requests.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if request is None:
                return batch, False
            batch.append(request)
            rows += len(request.rows)
        return batch, True

    def _run(self, batch: list[_Request]) -> None:
        batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            found = self._answer([row for request in batch for row in request.rows])
        except BaseException as error:
            for request in batch:
                request.future.set_exception(error)
            return
        start = 0
        for request in batch:
            request.future.set_result(found[start : start + len(request.rows)])
            start += len(request.rows)
