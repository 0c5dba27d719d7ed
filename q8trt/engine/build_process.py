"""Builds of plans in a separate process, so that a crash of the builder does not end the caller.

TensorRT is native code. A fault in it, or the system's out-of-memory killer, ends its process. This module turns that end into an
error of one line. Ctrl-C ends a build immediately, because there is no state to clean up.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import msgspec

from q8trt import errors
from q8trt.console.children import end_of, import_paths, last_words, python_module
from q8trt.engine import build_messages as messages
from q8trt.engine.backend import Backend, builders
from q8trt.engine.config import BuildConfig, PhaseCallback, PlanInfo
from q8trt.errors import BackendError, EngineError
from q8trt.files import atomic_file
from q8trt.files.onnx import check_file

_log = logging.getLogger(__name__)
_LOGGERS = ("q8trt", "q8trt.tensorrt")


def build_plan(
    onnx_path: str | Path, plan_path: str | Path, config: BuildConfig, on_progress: PhaseCallback | None = None
) -> PlanInfo:
    """Build `plan_path` from `onnx_path`. The plan is written completely or not at all.

    Each input of the network must be (batch, sequence), both dynamic. TensorRT needs a GPU to build, TensorRT-RTX does not. See
    "The Build Phase" (Python API documentation) in TensorRT's documentation.

    `on_progress` is called during the build. An exception in it ends the build and is raised.

    Raises:
        ConfigError: `config.backend` is unknown, or does not support an option of `config`.
        BackendError: the backend is not installed or cannot start (TensorRT without a GPU).
        EngineError: the ONNX file is missing, damaged or not supported, the plan cannot be built or written, or the builder
            crashed or was killed; the signal is named.
    """
    onnx_path, plan_path = Path(onnx_path), Path(plan_path)
    if not onnx_path.is_file():
        raise EngineError(f"{onnx_path} does not exist; export the model first")
    check_file(onnx_path)
    try:
        with atomic_file(plan_path) as temporary:
            files = messages.BuildFiles(str(onnx_path.absolute()), str(temporary.absolute()))
            answer = _in_child(files, config, f"while it built {onnx_path}", on_progress)
            assert isinstance(answer, messages.Built)
            return answer.plan
    except OSError as error:
        raise EngineError(f"cannot write {plan_path}: {error.strerror or error}") from error


def started_backend(config: BuildConfig) -> Backend:
    """Return the first backend for `config` whose builder starts here. Each is tried in a separate process.

    So a machine that cannot build reports it before an export, which may take minutes.

    Raises:
        ConfigError: `config.backend` is unknown, or the backend does not support an option of `config`.
        BackendError: no backend is installed, or none starts.
    """
    problems: list[str] = []
    for backend in builders(config.backend):
        if problems:
            _log.info("%s builds instead: %s", backend.title, problems[-1])
        try:
            config.check_supported(backend)
            _in_child(None, replace(config, backend=backend.name), "when it started")
            return backend
        except (BackendError, EngineError) as error:
            problems.append(str(error))
    raise BackendError("; ".join(problems))


def _in_child(
    files: messages.BuildFiles | None, config: BuildConfig, moment: str, on_progress: PhaseCallback | None = None
) -> messages.Started | messages.Built:
    """Start a building process and return its answer. Raises its error, or EngineError if it ends without an answer."""
    levels = {name: logging.getLogger(name).getEffectiveLevel() for name in _LOGGERS}
    request = messages.BuildRequest(files, config, on_progress is not None, levels)
    with tempfile.TemporaryFile() as stderr, _child(msgspec.json.encode(request).decode(), stderr) as child:
        answer: messages.Message | None = None
        for line in child.stdout or ():
            message = msgspec.json.decode(line, type=messages.Message)
            if isinstance(message, messages.Progress) and on_progress:
                on_progress(message.phase, message.done, message.total)
            elif isinstance(message, messages.LogLine):
                logging.getLogger(message.logger).log(message.level, "%s", message.text)
            else:
                answer = message
        code = child.wait()
        match answer:
            case messages.Built() | messages.Started():
                return answer
            case messages.Refused():
                raise getattr(errors, answer.error)(answer.text)
            case messages.SystemFailure():
                raise OSError(answer.number, answer.text, answer.file)
            case messages.Defect():
                raise RuntimeError(f"the building process failed:\n{answer.traceback}")
        if code == -signal.SIGINT:  # Ctrl-C went to the whole group and reached the child first
            raise KeyboardInterrupt
        hint = _hint(code) if files else "no GPU can be used with it, or its libraries do not fit: see `q8trt doctor`"
        raise EngineError(f"the builder {end_of(code)} {moment}{last_words(stderr)}; {hint}")


@contextlib.contextmanager
def _child(request: str, stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start `q8trt.engine.build_worker` with this process's import paths, and kill it at the end, also after an error.

    Its standard input is a pipe to which nothing is written. If this process dies, the pipe closes and the child ends.
    """
    command, pipe = python_module("q8trt.engine.build_worker", request), subprocess.PIPE
    try:
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, env=import_paths())
    except OSError as error:
        raise BackendError(f"cannot start a process to build in: {error.strerror or error}") from error
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def _hint(code: int) -> str:
    """Return the remedy for a builder that ended with this return code."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "most likely memory ran out: free some and try again"
    return "try another --builder_optimization_level or version of TensorRT"
