"""The only module that imports `tensorrt`, `tensorrt_lean` or `tensorrt_rtx`.

The packages have the same Python API under different module names. All other code of q8trt uses a `Backend`, and
distinguishes the packages only for real differences, such as timing caches or the GPU architectures of a plan.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from q8trt.console.names import one_line
from q8trt.engine.driver import DriverProblem, driver_cuda, driver_problem
from q8trt.errors import BackendError, ConfigError, MissingPackageError, nearest
from q8trt.hardware.gpu import Gpu, gpus
from q8trt.hardware.packages import install_command, installed_version

BACKENDS = TENSORRT, TENSORRT_RTX = ("tensorrt", "tensorrt_rtx")
TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
#: TensorRT's lean runtime runs version-compatible plans and does not build ("Version Compatibility" in its documentation).
LEAN, LEAN_TITLE = "tensorrt_lean", "TensorRT's lean runtime"
INSTALL = {TENSORRT: install_command("tensorrt"), TENSORRT_RTX: install_command("rtx")}
#: The names that `--backend` accepts, with the common short name.
BACKEND_NAMES = TENSORRT, f"{TENSORRT_RTX} (or rtx)"
_ALIASES = {"trt": TENSORRT, "rtx": TENSORRT_RTX, "trt_rtx": TENSORRT_RTX}

_log = logging.getLogger(__name__)
_trt_log = logging.getLogger("q8trt.tensorrt")
# An error of TensorRT also becomes the message of an exception, so it is printed twice only if logging is configured.
_trt_log.addHandler(logging.NullHandler())
_loggers: dict[str, Any] = {}


@dataclass(frozen=True)
class Backend:
    """An importable TensorRT package.

    Attributes:
        name: one of `BACKENDS`.
        module: the imported module. Code that uses it calls it `trt`.
        version: the module's version, such as "10.13.2.6".
        is_lean: whether this is TensorRT's lean runtime, which cannot build.
    """

    name: str
    module: ModuleType
    version: str
    is_lean: bool = False

    @property
    def title(self) -> str:
        """``"TensorRT-RTX 1.7.1.116"``, for messages and reports."""
        return f"{LEAN_TITLE if self.is_lean else TITLES[self.name]} {self.version}"

    @property
    def driver_problem(self) -> DriverProblem | None:
        """The reason why the driver cannot run this package; None if it can, or if there is no driver."""
        return driver_problem(LEAN if self.is_lean else self.name, self.title)

    @property
    def is_rtx(self) -> bool:
        """Return whether this is TensorRT-RTX, which builds without a GPU and compiles kernels at run time."""
        return self.name == TENSORRT_RTX

    def logger(self) -> Any:
        """Return the only `trt.ILogger` of this package in the process (TensorRT keeps the first one that it receives).

        It forwards messages to the Python logger "q8trt.tensorrt" and to the callable `listener`, if one is set. It stores the
        last 32 errors; see `last_error` and `forget_errors`.
        """
        if self.name not in _loggers:
            _loggers[self.name] = _make_logger(self.module)
        return _loggers[self.name]

    def check_driver(self) -> None:
        """Compare the package's CUDA version with the driver's, before any object of the package is constructed.

        Raises:
            BackendError: the driver is too old. The message names the package for this driver.
        """
        if problem := self.driver_problem:
            raise BackendError(str(problem))

    def check_build(self) -> None:
        """Check that a plan can be built here. TensorRT-RTX builds without a GPU.

        Raises:
            BackendError: the driver is missing or too old. Without a driver, TensorRT's builder aborts the process.
        """
        if self.is_rtx:
            return
        if driver_cuda() is None:
            install = "" if installed_version("tensorrt-rtx") else f"{INSTALL[TENSORRT_RTX]}, then "
            raise BackendError(
                f"{self.title} builds on an NVIDIA GPU only, and no driver was found; TensorRT-RTX builds without one: "
                f"{install}add --backend {TENSORRT_RTX}"
            )
        self.check_driver()

    def runtime(self) -> Any:
        """Construct a `trt.Runtime`.

        Raises:
            BackendError: CUDA cannot be initialized, or the driver is too old for this package.
        """
        self.check_driver()
        self.forget_errors()
        try:
            runtime = self.module.Runtime(self.logger())
        except TypeError as error:  # pybind11 turns TensorRT's null pointer into this
            raise BackendError(f"{self.title} cannot start: {self.last_error()}") from error
        if self.logger().errors:
            # TensorRT 11 returns an object around null. Its destructor would end the process, so it must not run.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
            raise BackendError(f"{self.title} cannot start: {self.last_error()}")
        return runtime

    def forget_errors(self) -> None:
        """Delete the stored errors, so that `last_error` returns only later ones."""
        self.logger().errors.clear()

    def last_error(self) -> str:
        """Return the newest error, in one line, that TensorRT logged since `forget_errors`, or "no reason was logged"."""
        errors = self.logger().errors
        return errors[-1] if errors else "no reason was logged"

    def supported_sms(self) -> list[str]:
        """Return the compute capabilities that a plan can be built for, such as ["7.5", "8.0"].

        The list is empty for TensorRT, which builds only for the GPU of this machine.
        """
        if not self.is_rtx:
            return []
        return [sm for name in self.module.ComputeCapability.__members__ if (sm := sm_name(name))]

    def portable_sms(self) -> list[str]:
        """Return the compute capabilities of a plan that is built without --sm, such as ["8.0", "8.6"]; [] for TensorRT.

        Such a plan of TensorRT-RTX covers every architecture that the package names except Turing (7.5), which needs a separate
        plan; see "CPU-Only AOT and TensorRT-RTX Engines" in its documentation. TensorRT builds for the GPU of this machine.
        """
        return [sm for sm in self.supported_sms() if sm != "7.5"]

    def refusal(self, card: Gpu) -> str | None:
        """Return the reason why no plan of this package runs on `card`; None if plans run on it.

        TensorRT-RTX runs on the architectures that it names and on newer ones, but not on others in between. Version 1.7 loads
        no plan on an H100 (9.0); see `benchmarks/results/tensorrt-rtx-on-h100.json`.
        """
        named = self.supported_sms()
        if not named or card.sm in named or numbers(card.sm) > max(map(numbers, named)):
            return None
        return (
            f"{self.title} runs on compute capability {', '.join(named)} and newer, {card.name} has {card.sm}: "
            f"use TensorRT there ({INSTALL[TENSORRT]})"
        )


@dataclass(frozen=True)
class BackendState:
    """A TensorRT package on this machine.

    Attributes:
        name: one of `BACKENDS`.
        backend: the package; None if it cannot be used.
        problem: the reason why it cannot be used; "" if it can.
        installed: False only if the package is missing.
    """

    name: str
    backend: Backend | None = None
    problem: str = ""
    installed: bool = True


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, which can be compared: ``"12.0"`` -> ``(12, 0)``. Parts that are not numbers are left out."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def sm_name(member: str) -> str | None:
    """Return ``"12.0"`` for ``"SM120"``; None for members of `trt.ComputeCapability` that are not architectures."""
    match = re.fullmatch(r"SM(\d+)(\d)", member)
    return f"{match[1]}.{match[2]}" if match else None


def _make_logger(trt: ModuleType) -> Any:
    base: Any = trt.ILogger
    severity = base.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class ForwardingLogger(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: deque[str] = deque(maxlen=32)
            self.listener: Callable[[str], None] | None = None

        def log(self, severity: Any, msg: str) -> None:
            if self.listener is not None:
                self.listener(msg)
            level = levels.get(severity, logging.INFO)
            if level == logging.ERROR:
                self.errors.append(one_line(msg))
            _trt_log.log(level, "%s", msg)

    return ForwardingLogger()


def find_backend(name: str | None = None) -> Backend:
    """Import a TensorRT package.

    Args:
        name: one of `BACKENDS`, or "trt", "rtx", "tensorrt-rtx" in any case; None for the first of `builders`.

    Raises:
        ConfigError: the name is unknown.
        BackendError: the package is not installed (`MissingPackageError` if `name` is given), or its import fails. The message
            quotes the reason.
    """
    return builders(name)[0]


def builders(name: str | None = None) -> list[Backend]:
    """Return the packages that can build plans here, the best one first: the package of `name`, or all that are installed.

    The errors are those of `find_backend`.
    """
    if name is not None:
        return [_load(backend_name(name))]
    states = backend_states()
    for state in states:
        if state.installed and not state.backend:
            _log.warning("%s", state.problem)
    backends = in_order([state.backend for state in states if state.backend], gpus())
    if not backends:
        raise BackendError("; ".join(state.problem for state in states))
    return backends


def in_order(backends: Sequence[Backend], cards: Sequence[Gpu]) -> list[Backend]:
    """Return `backends` with the best one first for a machine with these GPUs.

    TensorRT is first if there is a GPU and the driver is new enough for it. Otherwise TensorRT-RTX is first.
    """

    def is_unable(backend: Backend) -> bool:
        return not backend.is_rtx and (not cards or backend.driver_problem is not None)

    return sorted(backends, key=is_unable)


def plan_runtime(name: str, version_compatible: bool) -> Backend:
    """Import the package that loads plans of the backend `name`: the package itself, or TensorRT's lean runtime.

    The lean runtime loads version-compatible plans if the package is missing. The errors are those of `find_backend`.
    """
    try:
        return _load(backend_name(name))
    except MissingPackageError:
        lean = lean_runtime() if version_compatible and name == TENSORRT else None
        if lean is None:
            raise
        return lean


def lean_runtime() -> Backend | None:
    """Return TensorRT's lean runtime; None if it is missing or cannot be imported."""
    try:
        module = importlib.import_module(LEAN)
    except Exception:  # a missing shared library surfaces as ImportError, OSError or RuntimeError
        return None
    return Backend(TENSORRT, module, str(module.__version__), is_lean=True)


def backend_name(name: str) -> str:
    """Return the name in `BACKENDS` for `name`. Raises ConfigError if it is unknown."""
    key = name.strip().casefold().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; choose one of {', '.join(BACKEND_NAMES)}{nearest(key, BACKENDS)}")
    return key


def _load(name: str) -> Backend:
    title = TITLES[name]
    try:
        module = importlib.import_module(name)
        return Backend(name, module, str(module.__version__))
    except ModuleNotFoundError as error:
        if error.name == name:
            raise MissingPackageError(f"{title} is not installed", INSTALL[name]) from None
        raise BackendError(f"{title} is installed but cannot be imported: {one_line(error)}") from error
    except Exception as error:  # a missing shared library surfaces as ImportError, OSError or RuntimeError
        raise BackendError(f"{title} is installed but cannot be imported: {one_line(error)}") from error


def backend_states() -> list[BackendState]:
    """Return the state of each of `BACKENDS` on this machine."""
    return [_state(name) for name in BACKENDS]


def _state(name: str) -> BackendState:
    try:
        return BackendState(name, backend=_load(name))
    except MissingPackageError as error:
        return BackendState(name, problem=str(error), installed=False)
    except BackendError as error:
        return BackendState(name, problem=str(error))
