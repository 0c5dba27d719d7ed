"""Progress: bars on stderr if it is a terminal, else lines; or a function of the caller, or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

#: Function that shows progress, called as (description, done, total).
Display = Callable[[str, int, int], object]
#: Seconds between two lines of progress, if stderr is not a terminal.
LINE_SECONDS = 10.0
#: True: bars or lines on stderr; False: nothing; or a function.
_display: ContextVar[bool | Display] = ContextVar("display", default=True)


class _LastLine:
    """The time of the last line. All steps of a command share it, so a series of short steps prints lines, too."""

    def __init__(self) -> None:
        self.at = time.monotonic()


_last_line: ContextVar[_LastLine | None] = ContextVar("last_line", default=None)


def is_main_process() -> bool:
    """Return whether this process prints and writes files: the first process under torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def shown_by(display: bool | Display) -> Iterator[None]:
    """Set `display` to show the progress of the block: True for stderr, False for nothing, or a function."""
    token, last = _display.set(display), _last_line.set(_LastLine())
    try:
        yield
    finally:
        _display.reset(token)
        _last_line.reset(last)


def display() -> bool | Display:
    """Return the display of this process; False in all processes but the main one."""
    return is_main_process() and _display.get()


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show the progress of the block. Yields a function that advances it by a number of rows.

    Args:
        description: the name of the work.
        total: number of all rows.
        done: number of rows that were finished before.
    """
    shown = display()
    if callable(shown):
        yield _counter(description, total, shown, done)
        return
    if not shown:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        with _Lines(description, done, total) as lines:
            yield lines.advance
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:  # the light install
        try:
            yield _counter(description, total, _write, done)
        finally:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total, completed=done)
        yield lambda advance: bars.advance(task, advance)


def _counter(description: str, total: int, show: Display, done: int) -> Callable[[int], None]:
    """Return a function that adds to the number of finished rows and shows it."""

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        show(description, done, total)

    return advance


def _write(description: str, done: int, total: int) -> None:
    """Write progress over the current line of stderr."""
    sys.stderr.write(f"\r{description} {done}/{total}")
    sys.stderr.flush()


class _Lines:
    """Lines of progress, printed by a thread, because a step may take longer than the time between two lines."""

    def __init__(self, description: str, done: int, total: int) -> None:
        self.description, self._first, self._done, self.total = description, done, done, total
        self._started = time.monotonic()
        self._last = _last_line.get() or _LastLine()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, name="q8trt progress", daemon=True)

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def advance(self, rows: int) -> None:
        """Add to the number of finished rows."""
        self._done += rows

    def show_phase(self, description: str, done: int, total: int) -> None:
        """Replace the description and the counts."""
        self.description, self._done, self.total = description, done, total

    def line(self, seconds: float) -> str:
        """Return the line after `seconds` of work: rows done, all rows, and the estimated time left or the time so far."""
        here = self._done - self._first
        counts = f" {self._done:,}/{self.total:,}" if self.total else ""
        if not 0 < here < self.total - self._first:  # no row is finished, or all are
            return f"{self.description}{counts}, {clock(seconds)} so far"
        return f"{self.description}{counts}, about {clock(seconds / here * (self.total - self._done))} left"

    def _print(self) -> None:
        while not self._ended.wait(max(self._last.at + LINE_SECONDS - time.monotonic(), 0.0)):
            self._last.at = time.monotonic()
            with contextlib.suppress(OSError, ValueError):  # stderr is closed, or its disk is full
                print(self.line(time.monotonic() - self._started), file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: "0:01:30"."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


@contextlib.contextmanager
def phases(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show the phases of a build. Yields a function that is called as (phase, step, steps)."""
    shown = display()
    if callable(shown):

        def show(phase: str, step: int, steps: int) -> None:
            shown(f"{description}: {phase}", step, steps)

        yield show
        return
    if not shown:
        yield lambda phase, step, steps: None
        return
    if not sys.stderr.isatty():
        with _Lines(description, 0, 0) as lines:
            yield lambda phase, step, steps: lines.show_phase(f"{description}: {phase}", step, steps)
        return
    from rich.console import Console

    with Console(stderr=True).status(description) as status:
        yield lambda phase, step, steps: status.update(f"{description}: {phase} {step}/{steps}")
