"""The build of a TensorRT plan from ONNX with Q/DQ in the current process. `build_process` uses a separate one.

Networks are strongly typed: every tensor has the type of the ONNX file, and only the file decides which operations run in INT8.
TensorRT 11 and TensorRT-RTX have only this mode; TensorRT 10 needs a flag.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from q8trt.console.names import one_line
from q8trt.engine.backend import Backend, find_backend, sm_name
from q8trt.engine.config import BuildConfig, PhaseCallback, PlanInfo, TimingCacheState
from q8trt.engine.report import BuildLog, EngineReport, GraphSites, engine_report
from q8trt.engine.timing_cache import TimingCache, timing_cache_path
from q8trt.errors import BackendError, EngineError
from q8trt.hardware.gpu import gpus

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def build_here(
    onnx_path: Path, plan_path: Path, config: BuildConfig, on_progress: PhaseCallback | None = None
) -> PlanInfo:
    """Build `plan_path` from `onnx_path` in this process. A crash of the builder ends it; Ctrl-C waits for the builder.

    Each input of the network must be (batch, sequence), both dynamic. The plan is not written atomically. `on_progress` is
    called from the building thread. An exception in it stops the build and is raised.

    Raises:
        ConfigError: `config.backend` is unknown, or does not support an option of `config`.
        BackendError: the backend is not installed or cannot start (TensorRT without a GPU).
        EngineError: the ONNX file is damaged or not supported, the plan cannot be built, or the timing cache cannot be read or
            written.
        OSError: the plan cannot be written.
    """
    backend = find_backend(config.backend)
    config.check_supported(backend)
    monitor = _progress_monitor(backend, on_progress)
    start = time.perf_counter()
    build = _Build(backend, onnx_path, config, monitor)
    plan = build.run()
    seconds = time.perf_counter() - start
    peak = peak_memory_mib()  # before the engine is loaded to be inspected
    size = plan_path.write_bytes(memoryview(plan))
    report = build.report(plan)
    return PlanInfo(backend.name, backend.version, build.targets, seconds, size, build.cache_state, peak, report)


def peak_memory_mib() -> float | None:
    """Return the peak resident memory of this process in MiB; None if the system does not report it.

    `ru_maxrss` is not used on Linux, because there a process inherits it from its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(peaks[0]) / 1024 if peaks else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def new_builder(backend: Backend) -> Any:
    """Construct a `trt.Builder`. Without CUDA, TensorRT 10 aborts the process, and 11 ends it with SIGSEGV.

    Raises:
        BackendError: the builder does not start.
    """
    backend.forget_errors()
    try:
        return backend.module.Builder(backend.logger())
    except Exception as error:  # pybind11 turns TensorRT's null pointer into a TypeError that says nothing
        raise BackendError(f"{backend.title} cannot start a build: {backend.last_error()}") from error


class _Build:
    """One build. Its steps share the builder and its objects, because TensorRT requires that some outlive others."""

    def __init__(self, backend: Backend, onnx_path: Path, options: BuildConfig, monitor: Any) -> None:
        self.backend, self.trt = backend, backend.module
        self.onnx_path, self.options, self.monitor = onnx_path, options, monitor
        self.log = BuildLog()
        self.cache_state: TimingCacheState = "none"
        self.targets: list[str] = []
        self.builder = new_builder(backend)

    def run(self) -> Any:
        """Build and return the plan, a `trt.IHostMemory`."""
        network = self._network()
        self.sites = graph_sites(self.trt, network)
        config = self._config()
        self._add_profiles(network, config)
        cache = self._timing_cache(config)
        logger = self.backend.logger()
        logger.listener = self.log.add
        try:
            plan = self.builder.build_serialized_network(network, config)
        finally:
            logger.listener = None
        if self.monitor is not None:
            self.monitor.check()
        if plan is None:
            reason = self.backend.last_error()
            raise EngineError(f"{self.backend.title} cannot build {self.onnx_path}: {reason}{_hint(reason)}")
        if cache is not None:
            _using_cache(cache.save)
        self.targets = self._targets(config)
        return plan

    def report(self, plan: Any) -> EngineReport:
        """Return the contents of `plan`, from the inspector if a GPU can load the plan, else from the builder's log."""
        inspected = inspect_plan(self.backend, plan) if gpus() else None
        return engine_report(self.log, inspected, self.sites, len(self.options.profiles))

    def _network(self) -> Any:
        flags = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self.builder.create_network(0 if flags is None else 1 << int(flags))
        # The parser owns the weights until the build is over.
        self.parser = self.trt.OnnxParser(network, self.backend.logger())
        if not self.parser.parse_from_file(str(self.onnx_path)):
            raise EngineError(_parser_message(self.onnx_path, self.parser, self.backend))
        if not network.num_outputs or not network.num_inputs:
            raise EngineError(f"{self.onnx_path} has no model: it is empty or truncated; export it again")
        return network

    def _config(self) -> Any:
        trt, options = self.trt, self.options
        config = self.builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the plan describes its layers
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.builder_optimization_level is not None:
            config.builder_optimization_level = options.builder_optimization_level
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatibility_level != "none":
            level = getattr(trt.HardwareCompatibilityLevel, options.compatibility_member)
            config.hardware_compatibility_level = level
        if options.sm:
            config.num_compute_capabilities = len(options.sm)
            for index, sm in enumerate(options.sm):
                capability = getattr(trt.ComputeCapability, f"SM{sm.replace('.', '')}")
                if not config.set_compute_capability(capability, index):
                    raise EngineError(f"{self.backend.title} refused SM {sm}: {self.backend.last_error()}")
        if self.monitor is not None:
            config.progress_monitor = self.monitor
        return config

    def _add_profiles(self, network: Any, config: Any) -> None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        for tensor in inputs:
            shape = tuple(tensor.shape)
            if len(shape) != 2 or any(size != -1 for size in shape):
                raise EngineError(
                    f"{self.onnx_path}: input {tensor.name!r} has shape {shape}; expected a dynamic (batch, sequence): "
                    "export it with both axes dynamic"
                )
        for shapes in self.options.profiles:
            profile = self.builder.create_optimization_profile()
            for tensor in inputs:
                profile.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
            if config.add_optimization_profile(profile) < 0:
                raise EngineError(f"{self.onnx_path}: the shapes {shapes} were refused: {self.backend.last_error()}")

    def _timing_cache(self, config: Any) -> TimingCache | None:
        if self.options.timing_cache is None:
            return None
        if self.backend.is_rtx:
            _log.info("TensorRT-RTX has no timing cache (it tunes when a plan is loaded); timing_cache is ignored")
            self.cache_state = "unsupported"
            return None
        gpu = next(iter(gpus()), None)
        path = timing_cache_path(self.options.timing_cache, self.backend, gpu)
        cache = _using_cache(lambda: TimingCache(config, path))
        self.cache_state = cache.state
        return cache

    def _targets(self, config: Any) -> list[str]:
        if not self.backend.is_rtx:
            return [gpu.sm for gpu in gpus()[:1]]
        asked = (config.get_compute_capability(index).name for index in range(config.num_compute_capabilities))
        return [sm for name in asked if (sm := sm_name(name))] or self.backend.portable_sms()


def inspect_plan(backend: Backend, plan: Any) -> str | None:
    """Return the inspector's JSON for a serialized plan; None if the plan cannot be loaded on this GPU.

    Raises:
        BackendError: CUDA does not start, or the driver is too old.
    """
    runtime = backend.runtime()  # kept in a variable, because it must outlive the engine
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:  # such as a plan for other GPUs than this one
        _log.info("the plan cannot be inspected here: %s", backend.last_error())
        return None
    text: str = engine.create_engine_inspector().get_engine_information(backend.module.LayerInformationFormat.JSON)
    return text


def _hint(reason: str) -> str:
    """Return the remedy for a reason in the words of TensorRT-RTX 1.7; "" for any other reason."""
    if "OutOfMemory" in reason or "workspace limit" in reason:
        return "; give it more --workspace_mib, or smaller shapes"
    if "Turing" in reason:
        return "; TensorRT-RTX has no FP32 GEMM on SM 7.5: build with --fp16, or --int8 --fp16"
    return ""


def _using_cache(step: Callable[[], _T]) -> _T:
    try:
        return step()
    except OSError as error:
        raise EngineError(f"timing cache {error.filename or ''} cannot be used: {error.strerror or error}") from error


def graph_sites(trt: Any, network: Any) -> GraphSites:
    """Return the ONNX names of the matrix products and quantized additions of a parsed `trt.INetworkDefinition`.

    An elementwise layer of two dequantized tensors counts as an addition, because BERT's graph has no other.
    """
    kinds = trt.LayerType
    constants: set[str] = set()
    dequantized: set[str] = set()
    gemms: list[str] = []
    bmms: list[str] = []
    adds: list[str] = []
    for index in range(network.num_layers):  # the parser adds layers in the order of computation
        layer = network.get_layer(index)
        inputs = {each.name for number in range(layer.num_inputs) if (each := layer.get_input(number)) is not None}
        outputs = {layer.get_output(number).name for number in range(layer.num_outputs)}
        if layer.type == kinds.CONSTANT or (inputs and inputs <= constants):
            constants |= outputs
        elif layer.type == kinds.DEQUANTIZE:
            dequantized |= outputs
        elif layer.type == kinds.MATRIX_MULTIPLY:
            (gemms if inputs & constants else bmms).append(layer.name)
        elif layer.type == kinds.ELEMENTWISE and inputs <= dequantized:
            adds.append(layer.name)
    return GraphSites(tuple(gemms), tuple(bmms), tuple(adds))


def _parser_message(path: Path, parser: Any, backend: Backend) -> str:
    """Return one line about the parser's errors: the first error, its node if it is known, and the number of others."""
    if not parser.num_errors:
        return f"{path} cannot be parsed: {backend.last_error()}"
    first = parser.get_error(0)
    if "DESERIALIZE" in str(first.code()):
        return f"{path} is not a whole ONNX file: it is truncated or something else; export it again"
    node = first.node_name() or first.node_operator()
    where = f" at node {node!r} ({first.node_operator()})" if node else ""
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return f"{backend.title} cannot parse {path}{where}: {one_line(first.desc())}{more}"


def _progress_monitor(backend: Backend, on_progress: PhaseCallback | None) -> Any:
    """Return a `trt.IProgressMonitor` that calls `on_progress`; None without a function, or if TensorRT has no monitor."""
    base: Any = getattr(backend.module, "IProgressMonitor", None)
    if base is None or on_progress is None:
        return None
    callback = on_progress

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.failure: BaseException | None = None
            self.totals: dict[str, int] = {}

        def report(self, phase: str, done: int) -> None:
            # An exception must not cross the C++ frames between this method and `run`: store it, stop, and raise it later.
            try:
                if self.failure is None:
                    callback(phase, done, self.totals[phase])
            except BaseException as error:
                self.failure = error

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            self.report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.report(phase_name, step + 1)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            self.report(phase_name, self.totals[phase_name])

        def check(self) -> None:
            if self.failure is not None:
                raise self.failure

    return Monitor()
