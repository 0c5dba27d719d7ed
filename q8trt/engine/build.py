"""ONNX with Q/DQ in, a TensorRT plan out.

Networks are strongly typed: every tensor has the type the ONNX file gives it, and nothing but the file decides what
runs in INT8. TensorRT 11 and TensorRT-RTX know no other way; on TensorRT 10 the flag asks for it.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from q8trt.engine.backend import Backend, find_backend, one_line, sm_name
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import BackendError, EngineError
from q8trt.files import atomic_file
from q8trt.gpu import gpus

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Progress = Callable[[str, int, int], None]
"""Called as (phase, steps done, steps in all) from the building thread; phases nest."""


@dataclass(frozen=True)
class BuildConfig:
    """How a plan is built. The help of the command line comes from the fields' metadata."""

    backend: str | None = field(
        default=None, metadata={"help": "tensorrt or tensorrt_rtx; default: TensorRT if installed, else TensorRT-RTX"}
    )
    shapes: ShapeProfile = field(
        default_factory=ShapeProfile, metadata={"help": "smallest, best and largest (batch, sequence) of the plan"}
    )
    timing_cache: str | None = field(
        default=None, metadata={"help": "file that keeps kernel timings between builds (TensorRT only)"}
    )
    workspace_mib: int | None = field(
        default=None, metadata={"help": "scratch memory a layer may use, in MiB; default: all of the GPU's"}
    )


@dataclass(frozen=True)
class PlanInfo:
    """What was built.

    Attributes:
        backend: "tensorrt" or "tensorrt_rtx".
        version: the backend's version.
        sm_targets: the compute capabilities the plan is for, such as ["8.6", "8.9"]; [] when unknown.
        seconds: wall time of parsing and building.
        bytes: size of the plan.
        timing_cache: "none" (not asked for), "new", "loaded", or "unsupported" (TensorRT-RTX has none).
    """

    backend: str
    version: str
    sm_targets: list[str]
    seconds: float
    bytes: int
    timing_cache: str


def build_plan(
    onnx_path: str | Path, plan_path: str | Path, config: BuildConfig, on_progress: Progress | None = None
) -> PlanInfo:
    """Build `plan_path` from `onnx_path`; the plan is written whole or not at all.

    The inputs are the network's own, each (batch, sequence). Ctrl-C stops the build at its next step and raises
    KeyboardInterrupt. TensorRT needs a GPU to build, TensorRT-RTX does not. See "The Build Phase" (Python API
    documentation) and "Timing Cache" in TensorRT's documentation.

    Raises:
        ConfigError: `config.backend` is unknown.
        BackendError: the backend is not installed or cannot start (TensorRT without a GPU).
        EngineError: the ONNX file is missing, damaged or not supported, or the plan cannot be built or written.
    """
    onnx_path, plan_path = Path(onnx_path), Path(plan_path)
    if not onnx_path.is_file():
        raise EngineError(f"{onnx_path} does not exist; export the model first")
    backend = find_backend(config.backend)
    monitor = _progress_monitor(backend, on_progress)
    start = time.perf_counter()
    plan, targets, cache = _interruptible(lambda: _Build(backend, onnx_path, config, monitor).run(), monitor)
    seconds = time.perf_counter() - start
    size = _write(plan_path, plan)
    return PlanInfo(backend.name, backend.version, targets, seconds, size, cache)


def _write(path: Path, memory: Any) -> int:
    """Write a `trt.IHostMemory`, without a second copy of it in memory; return its size in bytes."""
    try:
        with atomic_file(path) as temporary:
            return temporary.write_bytes(memoryview(memory))
    except OSError as error:
        raise EngineError(f"cannot write {path}: {error.strerror or error}") from error


class _Build:
    """One build: the steps share the builder and its objects, which must outlive each other in TensorRT's order."""

    def __init__(self, backend: Backend, onnx_path: Path, config: BuildConfig, monitor: Any) -> None:
        self.backend, self.trt = backend, backend.module
        self.onnx_path, self.options, self.monitor = onnx_path, config, monitor
        backend.forget_errors()
        try:
            self.builder = self.trt.Builder(backend.logger())
        except Exception as error:  # pybind11 turns TensorRT's null pointer into a TypeError that says nothing
            raise BackendError(f"{backend.title} cannot start a build: {backend.last_error()}") from error

    def run(self) -> tuple[Any, list[str], str]:
        """The plan (a `trt.IHostMemory`), its SM targets and the state of its timing cache."""
        network = self._network()
        config = self.builder.create_builder_config()
        if self.options.workspace_mib is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, self.options.workspace_mib << 20)
        if self.monitor is not None:
            config.progress_monitor = self.monitor
        self._set_profile(network, config)
        cache = self._load_timing_cache(config)
        plan = self.builder.build_serialized_network(network, config)
        if self.monitor is not None:
            self.monitor.check()
        if plan is None:
            raise EngineError(f"{self.backend.title} cannot build {self.onnx_path}: {self.backend.last_error()}")
        if cache in ("new", "loaded"):
            self._save_timing_cache(config)
        return plan, self._targets(config), cache

    def _network(self) -> Any:
        flags = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self.builder.create_network(0 if flags is None else 1 << int(flags))
        # The parser owns the weights until the build is over.
        self.parser = self.trt.OnnxParser(network, self.backend.logger())
        if not self.parser.parse_from_file(str(self.onnx_path)):
            raise EngineError(_parser_message(self.onnx_path, self.parser, self.backend))
        if not network.num_outputs or not network.num_inputs:
            raise EngineError(f"{self.onnx_path} holds no model: it is empty or truncated; export it again")
        return network

    def _set_profile(self, network: Any, config: Any) -> None:
        shapes = self.options.shapes
        profile = self.builder.create_optimization_profile()
        for tensor in (network.get_input(index) for index in range(network.num_inputs)):
            shape = tuple(tensor.shape)
            if len(shape) != 2 or any(size != -1 for size in shape):
                raise EngineError(
                    f"{self.onnx_path}: input {tensor.name!r} has shape {shape}; expected a dynamic (batch, sequence): "
                    "export it with both axes dynamic"
                )
            profile.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{self.onnx_path}: the shapes {shapes} were refused: {self.backend.last_error()}")

    def _load_timing_cache(self, config: Any) -> str:
        if self.options.timing_cache is None:
            return "none"
        if self.backend.name == "tensorrt_rtx":
            _log.info("TensorRT-RTX has no timing cache (it tunes when a plan is loaded); timing_cache is ignored")
            return "unsupported"
        path = Path(self.options.timing_cache)
        if path.is_file():
            cache = _try_timing_cache(config, path.read_bytes())
            if cache is not None:
                return "loaded"
            _log.warning("timing cache %s is damaged or of another version or GPU; starting a new one", path)
        _try_timing_cache(config, b"")
        return "new"

    def _save_timing_cache(self, config: Any) -> None:
        cache = config.get_timing_cache()
        if cache is not None:
            _write(Path(str(self.options.timing_cache)), cache.serialize())

    def _targets(self, config: Any) -> list[str]:
        if self.backend.name == "tensorrt":
            return [gpu.sm for gpu in gpus()[:1]]
        asked = (config.get_compute_capability(index).name for index in range(config.num_compute_capabilities))
        return [sm for name in asked if (sm := sm_name(name))] or self.backend.portable_sms()


def _try_timing_cache(config: Any, data: bytes) -> Any:
    """Attach a timing cache; None when TensorRT refuses it, which it does by null, by False or by raising."""
    try:
        cache = config.create_timing_cache(data)
        return cache if cache is not None and config.set_timing_cache(cache, False) else None
    except Exception as error:
        _log.debug("timing cache refused: %s", error)
        return None


def _parser_message(path: Path, parser: Any, backend: Backend) -> str:
    """One line for what the parser found, naming the node where it tells one."""
    if not parser.num_errors:
        return f"{path} cannot be parsed: {backend.last_error()}"
    first = parser.get_error(0)
    if "DESERIALIZE" in str(first.code()):
        return f"{path} is not a whole ONNX file: it is truncated or something else; export it again"
    node = first.node_name() or first.node_operator()
    where = f" at node {node!r} ({first.node_operator()})" if node else ""
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return f"{backend.title} cannot parse {path}{where}: {one_line(first.desc())}{more}"


def _progress_monitor(backend: Backend, on_progress: Progress | None) -> Any:
    """A `trt.IProgressMonitor` that reports to `on_progress` and can stop the build; None before TensorRT 8.6."""
    base: Any = getattr(backend.module, "IProgressMonitor", None)
    if base is None:
        return None

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.stopped = False
            self.failure: BaseException | None = None
            self.totals: dict[str, int] = {}

        def report(self, phase: str, done: int) -> None:
            # An exception must not cross the C++ frames between here and `build_plan`: keep it, stop, raise it later.
            try:
                if on_progress is not None and not self.stopped:
                    on_progress(phase, done, self.totals[phase])
            except BaseException as error:
                self.failure = error
                self.stopped = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            self.report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.report(phase_name, step + 1)
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self.report(phase_name, self.totals[phase_name])

        def check(self) -> None:
            if self.failure is not None:
                raise self.failure

    return Monitor()


def _interruptible(work: Callable[[], _T], monitor: Any) -> _T:
    """Run `work` in a thread of its own, so that Ctrl-C reaches Python while the build sits in C++.

    Ctrl-C must not raise here, between the locks of `wait`, nor in a callback under C++: it is noted and raised last.
    """
    interrupts = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if monitor is not None:
            monitor.stopped = True

    with _sigint_handler(note), ThreadPoolExecutor(1, thread_name_prefix="q8trt-build") as pool:
        future = pool.submit(work)
        while not wait([future], timeout=0.2).done:  # on Windows a signal is handled only between waits
            pass
    if interrupts:
        raise KeyboardInterrupt
    return future.result()


@contextlib.contextmanager
def _sigint_handler(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` take Ctrl-C, unless the program has a handler of its own or this is not the main thread."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
