"""A plan that is deserialized once, with execution contexts for any number of threads."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.console.names import one_line
from q8trt.engine.backend import Backend
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import BackendError, EngineError
from q8trt.runtime.base import RunOptions
from q8trt.runtime.tensorrt.cuda import CheckedCuda, text
from q8trt.runtime.tensorrt.runtime_cache import RuntimeCache, runtime_cache_path


class SharedEngine:
    """An `ICudaEngine` with a count of its users. `retain` adds a user and `release` removes one; the last one frees it.

    Attributes:
        backend: the TensorRT package.
        cuda: the CUDA runtime.
        device: the index of the GPU; `gpu` is its name.
        input_names: the inputs in the plan's order; `output_names` are the outputs, of which `logits` is the result.
        dtypes: the NumPy type of each tensor.
        profiles: the optimization profiles.
        captures: whether the runner captures CUDA graphs. TensorRT-RTX captures its own, after it has compiled the
            kernels of a shape ("Working with RTX CUDA Graphs" in its documentation).
    """

    def __init__(
        self, path: Path, backend: Backend, cuda: CheckedCuda, device: int, options: RunOptions, host_code: bool
    ) -> None:
        self.backend, self.cuda, self.device = backend, cuda, device
        self.captures = options.cuda_graph and not backend.is_rtx
        #: `Timing.cuda_graph` of a batch without a captured graph.
        self.graph_state = None if options.cuda_graph and not self.captures else False
        self._lock, self._users = threading.Lock(), 1
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        self._cache: RuntimeCache | None = None
        try:
            self._open(path, options, host_code)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # an exception that is kept must not keep the engine
            self.release()
            raise

    def _open(self, path: Path, options: RunOptions, host_code: bool) -> None:
        cuda, backend = self.cuda, self.backend
        backend.check_driver()  # cuda-python's message is less helpful
        cuda.cudaSetDevice(self.device)
        self.gpu = text(cuda.cudaGetDeviceProperties(self.device).name)
        self._runtime = runtime = backend.runtime()
        if host_code:
            runtime.engine_host_code_allowed = True
        plan = path.read_bytes()
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{backend.title} cannot load {path} on {self.gpu}; "
                f"rebuild it with this version on this GPU: {backend.last_error()}"
            )
        self._describe(path)
        if backend.is_rtx:
            self._config = self._runtime_config(options.specialization, options.cuda_graph)
            folder = Path(options.runtime_cache or path.parent)
            self._cache = RuntimeCache(self._config, runtime_cache_path(folder, plan, backend.version, self.gpu))

    def _describe(self, path: Path) -> None:
        engine, trt = self._engine, self.backend.module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.input_names = tuple(name for name in names if inputs[name])
        self.output_names = tuple(name for name in names if not inputs[name])
        if not self.input_names or not self.output_names:
            raise EngineError(
                f"{path} has inputs {list(self.input_names)} and outputs {list(self.output_names)}; both are needed"
            )
        self.logits = "logits" if "logits" in self.output_names else self.output_names[0]
        try:
            self.dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        except TypeError as error:
            raise EngineError(
                f"{path} has an input or output of a type that NumPy lacks ({one_line(error)})"
            ) from error
        shapes = (
            engine.get_tensor_profile_shape(self.input_names[0], each)
            for each in range(engine.num_optimization_profiles)
        )
        self.profiles = tuple(ShapeProfile(*map(tuple, each)) for each in shapes)

    def _runtime_config(self, specialization: str, cuda_graph: bool) -> Any:
        """Return the configuration of how TensorRT-RTX compiles kernels at run time and whether it captures CUDA graphs."""
        trt = self.backend.module
        config = self.ask(self._engine.create_runtime_config)
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, specialization.upper())
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graph else graphs.DISABLED
        return config

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a function of the library. None and False mean that the library refused the call.

        Raises:
            BackendError: the function refused or raised; the message quotes the last error that the library logged.
        """
        try:
            answer = function(*arguments)
        except RuntimeError as error:
            raise BackendError(
                f"{self.backend.title}: {function.__name__} failed: {one_line(error)}: {self.backend.last_error()}"
            ) from error
        if answer is None or answer is False:
            reason = self.backend.last_error()
            self.backend.forget_errors()  # a later refusal must not quote it
            raise BackendError(f"{self.backend.title}: {function.__name__} was refused: {reason}")
        return answer

    def new_context(self, profiler: Any = None) -> Any:
        """Create an execution context, in any thread. Its memory fits the profile that the context is switched to.

        Args:
            profiler: a `trt.IProfiler` that receives the layers of each batch; such a context launches no CUDA graph.
        """
        with self._lock:
            config = self._config
            if config is None:
                config = self.backend.module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            elif profiler is not None:
                config = self._runtime_config("eager", cuda_graph=False)
                if self._cache is not None:
                    self._cache.share(config)
            context = self.ask(self._engine.create_execution_context, config)
        if profiler is not None:
            context.profiler = profiler
            context.enqueue_emits_profile = True
        return context

    def save_runtime_cache(self) -> None:
        """Save the kernels that TensorRT-RTX compiled. Do nothing for TensorRT, which compiles none at run time."""
        with self._lock:
            if self._cache is not None:
                self._cache.save()

    @property
    def runtime_cache_state(self) -> str:
        """ "none" (TensorRT has no such cache), "new" or "loaded"."""
        return "none" if self._cache is None else self._cache.state

    def retain(self) -> SharedEngine:
        """Return this engine, with one more user."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """Remove a user. After the last one, free the engine; its contexts must be gone."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        try:
            self.save_runtime_cache()
        finally:
            # each refers to those after it
            self._config = self._cache = None
            self._engine = None
            self._runtime = None


def layer_profiler(trt: Any) -> Any:
    """Return a `trt.IProfiler` with `reports`: layer -> ms, batch after batch, in the order in which layers first ran."""
    base: Any = trt.IProfiler

    class LayerProfiler(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.reports: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.reports.setdefault(layer_name, []).append(float(ms))

    return LayerProfiler()
