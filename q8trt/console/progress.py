"""Progress bars on stderr, silent where nobody watches."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


def is_main_process() -> bool:
    """Whether this is the process that prints and writes: the first one under torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; yields a function that advances it by a number of rows."""
    if not is_main_process() or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:  # a machine that only runs engines
        with _counter(description, total) as advance:
            yield advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda advance: bars.advance(task, advance)


@contextlib.contextmanager
def _counter(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A line that counts, in place of a bar; gone when the block ends."""
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        sys.stderr.write(f"\r{description} {done}/{total}")
        sys.stderr.flush()

    try:
        yield advance
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


@contextlib.contextmanager
def phases(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show what a builder is at; yields a function that takes (phase, step, steps)."""
    if not sys.stderr.isatty():
        yield lambda phase, step, steps: None
        return
    from rich.console import Console

    with Console(stderr=True).status(description) as status:
        yield lambda phase, step, steps: status.update(f"{description}: {phase} {step}/{steps}")
