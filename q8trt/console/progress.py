"""Progress: bars on stderr where it is a terminal, a function of the caller's in their place, or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar

#: Function that shows progress: (what is done, how much of it, of how much).
Display = Callable[[str, int, int], object]
#: True: bars on stderr; False: nothing.
_display: ContextVar[bool | Display] = ContextVar("display", default=True)


def is_main_process() -> bool:
    """Return whether this process prints and writes: the first one under torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def shown_by(display: bool | Display) -> Iterator[None]:
    """Let `display` show the progress of the block: True for bars on stderr, False for nothing, or a function."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


def display() -> bool | Display:
    """Return what shows progress in this process: only the main one shows any."""
    return is_main_process() and _display.get()


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of the block; yields a function that advances it by a number of rows."""
    shown = display()
    if callable(shown):
        yield _counter(description, total, shown)
        return
    if not shown or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:  # a machine that only runs engines
        try:
            yield _counter(description, total, _write)
        finally:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda advance: bars.advance(task, advance)


def _counter(description: str, total: int, show: Display) -> Callable[[int], None]:
    """Return a function that adds rows to those that are done, and shows how many they are."""
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        show(description, done, total)

    return advance


def _write(description: str, done: int, total: int) -> None:
    """Show progress as a line that counts."""
    sys.stderr.write(f"\r{description} {done}/{total}")
    sys.stderr.flush()


@contextlib.contextmanager
def phases(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show the phases of a build; yields a function that takes (phase, step, steps)."""
    shown = display()
    if callable(shown):

        def show(phase: str, step: int, steps: int) -> None:
            shown(f"{description}: {phase}", step, steps)

        yield show
        return
    if not shown or not sys.stderr.isatty():
        yield lambda phase, step, steps: None
        return
    from rich.console import Console

    with Console(stderr=True).status(description) as status:
        yield lambda phase, step, steps: status.update(f"{description}: {phase} {step}/{steps}")
