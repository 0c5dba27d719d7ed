"""Conversion of panics of Rust libraries (tokenizers, safetensors) to errors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from q8trt.files.decoding import MalformedError


@contextlib.contextmanager
def no_panic() -> Iterator[None]:
    """Raise MalformedError if a library panics on its input.

    A panic is a BaseException, so ``except Exception`` does not catch it, and the library prints its stack to stderr. Until the
    block ends, file descriptor 2 is redirected to the null device for the whole process.
    """
    try:
        with _silent_stderr():
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise MalformedError(f"its reader failed: {' '.join(str(error).split())[:200]}") from None


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Redirect file descriptor 2 to the null device until the block ends."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # the process was started without an error stream
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
