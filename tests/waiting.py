"""Deadlines of tests: generous, so that only a hang misses one, on however slow a machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

#: Seconds for everything that a test waits for.
PATIENCE = 600


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until `condition` is true; fail after `PATIENCE`, or when `process` ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.01)
