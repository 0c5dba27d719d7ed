"""Signals that ask a command to stop: SIGINT (Ctrl-C), and SIGTERM, which clusters and service managers send."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM as an exception, so that code that cleans up after Ctrl-C also cleans up after SIGTERM."""


def interrupt(number: int) -> KeyboardInterrupt:
    """Return the exception for a signal."""
    return TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that a signal stopped: 128 plus the signal's number, as a shell reports it.

    Args:
        error: the exception that ended it. The signal is SIGTERM if this or one of its causes is a `TerminatedError`.
    """
    link: BaseException | None = error
    while link is not None and not isinstance(link, TerminatedError):
        link = link.__cause__ or link.__context__
    return 128 + (signal.SIGINT if link is None else signal.SIGTERM)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call `handler` for SIGNALS while the block runs, and restore the previous handlers after it.

    A signal that the process ignores stays ignored, as a shell's background job expects. Outside the main thread nothing
    changes, because Python allows no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    changed = {number: before for number, before in earlier.items() if before not in (None, signal.SIG_IGN)}
    try:
        for number in changed:
            signal.signal(number, handler)
        yield
    finally:
        for number, before in changed.items():
            signal.signal(number, before)
