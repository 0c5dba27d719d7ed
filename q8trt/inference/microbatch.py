"""Dynamic micro-batching: requests from any thread or event loop share batches.

A batch starts with `max_batch` rows, or `max_wait_ms` after its first request. While a batch runs, the next one collects rows, so
no time is lost under load. A request with many rows puts at most `share` rows into a batch and then waits behind the other
requests, so it does not delay them.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from q8trt.errors import ClosedError, ConfigError
from q8trt.inference.pool import CLOSED


@dataclass
class _Request:
    """Rows that wait for their answers. The first rows may already have theirs."""

    rows: Sequence[Any]
    future: Future[list[Any]] = field(default_factory=Future)
    answers: list[Any] = field(default_factory=list)

    def next_rows(self, share: int) -> Sequence[Any]:
        return self.rows[len(self.answers) : len(self.answers) + share]


class MicroBatcher:
    """A thread that runs `answer` on the rows of several requests at once. It ends when this object is collected.

    Args:
        answer: function from rows to one answer for each, in order. It must not refer to this object, which then could not be
            collected.
        max_batch: number of rows at which a batch starts.
        max_wait_ms: maximum milliseconds that the first request of a batch waits for others.
        share: maximum rows of one request in a batch; None for `max_batch`.

    Raises:
        ConfigError: `max_batch` is below 1 or `max_wait_ms` negative.
    """

    def __init__(
        self,
        answer: Callable[[list[Any]], list[Any]],
        max_batch: int,
        max_wait_ms: float,
        share: int | None = None,
    ) -> None:
        if max_batch < 1 or not max_wait_ms >= 0:
            raise ConfigError(f"max_batch must be 1 or more and max_wait_ms 0 or more; got {max_batch}, {max_wait_ms}")
        self._worker = _Worker(answer, max_batch, max_wait_ms / 1000, min(max_batch, share or max_batch))
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._end = weakref.finalize(self, self._worker.requests.put, None)
        self._end.atexit = False

    def submit(self, rows: Sequence[Any]) -> Future[list[Any]]:
        """Queue `rows`, and return the future of their answers. Raises ClosedError after `close`."""
        request = _Request(rows)
        with self._lock:
            if self._closed:
                raise ClosedError(CLOSED)
            if self._thread is None:
                self._thread = threading.Thread(target=self._worker.run, name="q8trt-microbatch", daemon=True)
                self._thread.start()
            self._worker.requests.put(request)
        return request.future

    def close(self) -> None:
        """Answer the queued requests, then end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
            self._end()
        if thread is not None and thread is not threading.current_thread():
            thread.join()


class _Worker:
    """The work of the thread. It has no reference to the `MicroBatcher` or its owner, which may therefore be collected."""

    def __init__(self, answer: Callable[[list[Any]], list[Any]], max_batch: int, max_wait: float, share: int) -> None:
        self.requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._answer, self._max_batch, self._max_wait, self._share = answer, max_batch, max_wait, share
        self._closing = False

    def run(self) -> None:
        """Run batches until None is queued and all requests before it are answered."""
        while batch := self._gather():
            self._run(batch)
            batch.clear()  # a future may keep its caller alive, and with it the engine

    def _next(self, timeout: float | None) -> _Request | None:
        """Return the next request; None after the timeout, or if the queue is empty after `close`."""
        try:
            request = self.requests.get(block=not self._closing, timeout=timeout)
        except queue.Empty:
            return None
        if request is None:
            self._closing = True
            return self._next(timeout)
        return request

    def _gather(self) -> list[_Request]:
        """Return the requests of the next batch; [] at the end."""
        first = self._next(None)
        if first is None:
            return []
        batch, rows = [first], len(first.next_rows(self._share))
        until = time.monotonic() + self._max_wait
        while rows < self._max_batch and (request := self._next(max(0.0, until - time.monotonic()))):
            batch.append(request)
            rows += len(request.next_rows(self._share))
        return batch

    def _run(self, batch: list[_Request]) -> None:
        batch = [request for request in batch if request.answers or request.future.set_running_or_notify_cancel()]
        if not batch:
            return
        parts = [request.next_rows(self._share) for request in batch]
        try:
            answers = self._answer([row for part in parts for row in part])
        except BaseException as error:
            for request in batch:
                request.future.set_exception(error)
            return
        start = 0
        for request, part in zip(batch, parts, strict=True):
            request.answers += answers[start : start + len(part)]
            start += len(part)
            if len(request.answers) < len(request.rows):
                self.requests.put(request)
            else:
                request.future.set_result(request.answers)
