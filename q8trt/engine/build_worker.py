"""The process that builds a plan: ``python -m q8trt.engine.build_worker``, started by `build`.

Its argument is the request, JSON; it writes lines of JSON to its standard output, each an object with one key: "progress"
(phase, done, total), "log" (logger, level, text), and at last "built" (a `PlanInfo`), "error" (class, text), "os_error"
(number, text, file) or "defect" (a traceback). The plan itself goes straight to its file. Only `q8trt.engine` and what
that needs are imported here, so the process is small and starts in a tenth of a second.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from q8trt.engine.builder import build_here
from q8trt.engine.config import BuildConfig
from q8trt.errors import Q8TRTError
from q8trt.files import decode


class _Messages:
    """Lines to the process that waits; from any thread, one whole line at a time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, kind: str, content: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({kind: content}) + "\n")
            self._stream.flush()

    def progress(self, phase: str, done: int, total: int) -> None:
        self.send("progress", [phase, done, total])


class _Forward(logging.Handler):
    """Sends what is logged here to where it is shown."""

    def __init__(self, messages: _Messages) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.send("log", [record.name, record.levelno, record.getMessage()])


def _claim_stdout() -> _Messages:
    """Keep the standard output for messages; what native code prints goes to the standard error."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return _Messages(stream)


def _end_with_parent() -> None:
    """End this process when the one that waits for it is gone: its end of our standard input is closed then."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: its lock must be free when the interpreter ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Build what the request asks for."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the builder at once, wherever in C++ it is
    messages = _claim_stdout()
    request = json.loads(sys.argv[1])
    _end_with_parent()
    for name, level in request["levels"].items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("q8trt").addHandler(_Forward(messages))
    try:
        config = decode(BuildConfig, request["config"])
        on_progress = messages.progress if request["progress"] else None
        info = build_here(Path(request["onnx"]), Path(request["plan"]), config, on_progress)
    except Q8TRTError as error:
        messages.send("error", [type(error).__name__, str(error)])
    except OSError as error:
        messages.send("os_error", [error.errno, error.strerror or str(error), error.filename])
    except Exception:
        messages.send("defect", traceback.format_exc())
    else:
        messages.send("built", dataclasses.asdict(info))


if __name__ == "__main__":
    main()
