"""Handling of Ctrl-C and SIGTERM, so that no signal is lost and none prints a traceback."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from q8trt.console.signals import exit_code, handled, interrupt

#: Seconds after which an interrupt that was dropped or postponed is sent again.
_AGAIN_SECONDS = 0.02


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, and SIGTERM its subclass `TerminatedError`.

    A signal may arrive in a ``__del__`` or a callback, where Python drops exceptions. The signal is then sent again. While a
    module is imported, the signal is postponed, because C++ code that is being loaded may end the process on an exception.
    """
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(_AGAIN_SECONDS, _send, [exit_code(unraisable.exc_value) - 128]).start()
        else:
            previous(unraisable)

    sys.unraisablehook = hook
    try:
        with handled(_stop):
            yield
    finally:
        sys.unraisablehook = previous


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise the exception of a signal, or send the signal again later if a module is being imported."""
    if _is_importing(frame):
        threading.Timer(_AGAIN_SECONDS, _send, [number]).start()
        return
    raise interrupt(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _send(number: int) -> None:
    """Send a signal to the main thread. A signal interrupts a system call, which the interpreter's flag does not."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(signal.Signals(number))
