"""Ctrl-C and SIGTERM that are neither lost nor answered with a traceback."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from q8trt.signals import exit_code, sigterm_raises

#: Seconds after which an interrupt that was swallowed comes again.
_AGAIN_SECONDS = 0.02


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, and SIGTERM its subclass `TerminatedError`.

    Python drops an exception that is raised in a ``__del__`` or a callback, where a signal may arrive as well: the
    interrupt is then delivered once more.
    """
    # The entry points leave the system's own action, under which a process ends in silence while it imports.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, _send, [exit_code(unraisable.exc_value) - 128]).start()
        else:
            previous(unraisable)

    sys.unraisablehook = hook
    try:
        with sigterm_raises():
            yield
    finally:
        sys.unraisablehook = previous


def _send(number: int) -> None:
    """Send a signal to the main thread: a signal ends a wait in the system, a flag of the interpreter does not."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))
