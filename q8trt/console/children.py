"""Python processes that this one starts: their import paths, and the words for how they ended."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import IO

from q8trt.console.names import one_line


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in this Python; the working directory is not an import path of it."""
    return [sys.executable, "-P", "-m", module, *arguments]


def import_paths() -> dict[str, str]:
    """Return this process's environment with its import paths, for a process that is to import the same packages."""
    paths = [str(Path(__file__).parents[2]), *(path or str(Path.cwd()) for path in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def end_of(code: int) -> str:
    """Describe the end of a process that left no answer: ``"crashed (SIGSEGV)"``."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "was killed (SIGKILL)"
    if code < 0:
        names = {int(each): each.name for each in signal.Signals}
        return f"crashed ({names.get(-code, f'signal {-code}')})"
    return f"ended without an answer (exit code {code if code < 2**31 else hex(code)})"


def last_words(stderr: IO[bytes]) -> str:
    """Return ``": <last line>"`` of what a process wrote to its standard error; "" when that is nothing."""
    stderr.seek(0)
    lines = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {one_line(lines[-1])}" if lines else ""
