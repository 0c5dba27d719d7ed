"""Signals that ask a command to stop: SIGINT, which is Ctrl-C, and SIGTERM, which clusters and service managers send."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, as an exception: code that tidies up after Ctrl-C tidies up after SIGTERM too."""


def interrupt(number: int) -> KeyboardInterrupt:
    """Return the exception that stands for a signal."""
    return TerminatedError() if number == signal.SIGTERM else KeyboardInterrupt()


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that a signal stopped: 128 and the signal's number, as a shell reports it.

    Args:
        error: the exception that ended it; SIGTERM has a `TerminatedError` among its causes.
    """
    link: BaseException | None = error
    while link is not None and not isinstance(link, TerminatedError):
        link = link.__cause__ or link.__context__
    return 128 + (signal.SIGINT if link is None else signal.SIGTERM)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call `handler` for the signals while the block runs; then the earlier handlers are back.

    A signal that the process ignores stays ignored, as a shell's background job expects. In another thread than the main
    one, where Python installs no handlers, nothing changes.
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
