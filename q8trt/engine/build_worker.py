"""The process that builds a plan, or only starts a builder: ``python -m q8trt.engine.build_worker REQUEST``.

`build_process` starts it. It writes messages (`build_messages`) to its standard output, and the plan to its file. It imports only
`q8trt.engine` and its requirements, so the process is small and starts in a tenth of a second.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TextIO

import msgspec

from q8trt.engine import build_messages as messages
from q8trt.engine.backend import find_backend
from q8trt.engine.builder import build_here, new_builder
from q8trt.engine.config import PhaseCallback
from q8trt.errors import Q8TRTError


class _Output(logging.Handler):
    """A logging handler that sends messages, and log records as messages. Any thread may send; lines stay whole."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self._write_lock = stream, threading.Lock()

    def send(self, message: messages.Message) -> None:
        with self._write_lock:
            self._stream.write(f"{msgspec.json.encode(message).decode()}\n")
            self._stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        self.send(messages.LogLine(record.name, record.levelno, record.getMessage()))


def _claim_stdout() -> TextIO:
    """Return the standard output for messages, and redirect the output of native code to the standard error."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _end_with_parent() -> None:
    """End this process when the process that started it ends, which closes the pipe of the standard input."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: its lock must be free when the interpreter ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer(request: messages.BuildRequest, on_progress: PhaseCallback | None) -> messages.Started | messages.Built:
    if request.files is None:
        new_builder(find_backend(request.config.backend))
        return messages.Started()
    onnx, plan = Path(request.files.onnx), Path(request.files.plan)
    return messages.Built(build_here(onnx, plan, request.config, on_progress))


def main() -> None:
    """Do the work of the request in the first argument, and write the answer to the standard output."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the builder at once, wherever in C++ it is
    output = _Output(_claim_stdout())
    request = msgspec.json.decode(sys.argv[1], type=messages.BuildRequest)
    _end_with_parent()
    for name, level in request.log_levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("q8trt").addHandler(output)

    def report(phase: str, done: int, total: int) -> None:
        output.send(messages.Progress(phase, done, total))

    try:
        answer = _answer(request, report if request.wants_progress else None)
    except Q8TRTError as error:
        output.send(messages.Refused(type(error).__name__, str(error)))
    except OSError as error:
        output.send(messages.SystemFailure(error.errno, error.strerror or str(error), error.filename))
    except Exception:
        output.send(messages.Defect(traceback.format_exc()))
    else:
        output.send(answer)


if __name__ == "__main__":
    main()
