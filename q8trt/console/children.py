"""Python processes that q8trt starts: their commands, their import paths, and the description of their end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import IO

from q8trt.console.names import one_line


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in this Python. ``-P`` keeps the working directory off the import path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def import_paths() -> dict[str, str]:
    """Return this process's environment with its import paths as PYTHONPATH, so that a child imports the same packages."""
    paths = [str(Path(__file__).parents[2]), *(path or str(Path.cwd()) for path in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def end_of(code: int) -> str:
    """Describe the end of a process that gave no answer, such as ``"crashed (SIGSEGV)"``, from its return code."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "was killed (SIGKILL)"
    if code < 0:
        names = {int(each): each.name for each in signal.Signals}
        return f"crashed ({names.get(-code, f'signal {-code}')})"
    return f"ended without an answer (exit code {code if code < 2**31 else hex(code)})"


def last_words(stderr: IO[bytes]) -> str:
    """Return ``": "`` and the last line, blank lines aside, of a process's standard error; "" if there is none."""
    stderr.seek(0)
    lines = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {one_line(lines[-1])}" if lines else ""
