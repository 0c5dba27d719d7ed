"""Run a plan on TensorRT or TensorRT-RTX. CUDA is called through cuda-python, so serving an engine needs no torch.

The plan is deserialized once (`engine`); each optimization profile has a context, a stream, buffers and a CUDA graph
(`bucket`). A batch goes pinned host memory -> device buffers -> `execute_async_v3` or the graph -> pinned host memory ->
logits, all on the profile's stream. Arrays on the GPU are read in place. Importing this module imports neither package.

Only one thread at a time may use a runner. To use an engine in several threads, give each thread a `fork`::

    with TensorRTRunner("model.plan", "int8") as runner, ThreadPoolExecutor(8) as pool:
        forks = [runner.fork() for _ in range(8)]
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.backend import TITLES, find_backend, plan_runtime
from q8trt.engine.manifest import PLAN_FILE, Manifest
from q8trt.engine.preflight import Problem, needs_host_code, preflight
from q8trt.engine.shapes import Shape, covering, show_profiles
from q8trt.errors import BackendError, DataError, EngineError
from q8trt.quantization.precision import Precision
from q8trt.runtime.base import (
    Capabilities,
    EngineRuntime,
    Runner,
    RunOptions,
    Timing,
    TritonBackend,
    common_shape,
)
from q8trt.runtime.tensorrt.bucket import Bucket
from q8trt.runtime.tensorrt.cuda import attempt, cuda_runtime
from q8trt.runtime.tensorrt.device_arrays import DeviceArray, on_gpu, shape_of
from q8trt.runtime.tensorrt.engine import SharedEngine, layer_profiler
from q8trt.runtime.timing.layers import LayerTime, median_times


class TensorRT(EngineRuntime):
    """TensorRT or TensorRT-RTX, two packages with the same API."""

    def obstacles(self, folder: Path, manifest: Manifest, shapes: Sequence[Shape] = ()) -> list[Problem]:
        """See `EngineRuntime.obstacles`."""
        return preflight(folder, self.name, shapes, verify=False)

    def open(self, folder: Path, manifest: Manifest, options: RunOptions) -> Runner:
        """See `EngineRuntime.open`."""
        plan, host_code = folder / PLAN_FILE, needs_host_code(manifest)
        return TensorRTRunner(plan, manifest.precision, self.name, options=options, host_code=host_code)


_PROTOCOLS = ("DLPack", "__cuda_array_interface__")
TENSORRT = TensorRT(
    "tensorrt",
    TITLES["tensorrt"],
    Capabilities(fixed_shapes=True, cuda_graphs=True, array_protocols=_PROTOCOLS),
    device="cuda",
    model_file=PLAN_FILE,
    triton=TritonBackend("tensorrt_plan", ("cuda",)),
    aliases=("trt",),
)
#: TensorRT-RTX captures its own CUDA graphs and does not report their launches.
TENSORRT_RTX = TensorRT(
    "tensorrt_rtx",
    TITLES["tensorrt_rtx"],
    Capabilities(fixed_shapes=True, array_protocols=_PROTOCOLS),
    device="cuda",
    model_file=PLAN_FILE,
    aliases=("rtx", "trt_rtx"),
)
_RUNTIMES = {runtime.name: runtime for runtime in (TENSORRT, TENSORRT_RTX)}


class TensorRTRunner(Runner):
    """A runner of a serialized plan. It allocates all device and pinned memory when it opens, and none while batches run.

    Args:
        plan_path: the plan.
        precision: of the plan, or its name; for reports.
        backend: the name of the package that built the plan; None for the package that `find_backend` chooses.
        device: index of the CUDA device.
        options: CUDA graphs, and what TensorRT-RTX compiles at run time.
        host_code: allow a plan with code for the host, such as a version-compatible plan with its lean runtime. Such a plan
            is a program, so load it only if you trust its author. TensorRT's lean runtime can also load it.

    Attributes:
        profiles: the plan's optimization profiles; a batch runs in the smallest one that accepts it.

    Raises:
        ConfigError: the backend is unknown.
        BackendError: the backend or cuda-python is not installed, no GPU can be used, or its memory is full.
        EngineError: the plan is missing, damaged, or of another version or GPU; TensorRT's own line is quoted.
    """

    def __init__(
        self,
        plan_path: str | Path,
        precision: Precision | str,
        backend: str | None = None,
        device: int = 0,
        options: RunOptions | None = None,
        host_code: bool = False,
    ) -> None:
        path = Path(plan_path)
        if not path.is_file():
            raise EngineError(f"{path} does not exist; build the engine first")
        package = plan_runtime(backend, host_code) if backend else find_backend()
        options = options or RunOptions()
        engine = SharedEngine(path, package, cuda_runtime(package.name), device, options, host_code)
        self._start(engine, Precision(precision))

    def _start(self, engine: SharedEngine, precision: Precision) -> None:
        self.precision, self._engine = precision, engine
        self.runtime, self.device = _RUNTIMES[engine.backend.name], engine.gpu
        self.input_names, self.profiles = engine.input_names, engine.profiles
        self._busy = threading.Lock()
        self._buckets: list[Bucket] = []
        self._closed = False
        try:
            for index in range(len(self.profiles)):
                self._buckets.append(Bucket(engine, index))
        except BaseException:
            self.close()
            raise

    def fork(self) -> TensorRTRunner:
        """Return a runner for another thread: the same engine with separate contexts, streams, buffers and graphs.

        The runners can be closed in any order. The last one frees the engine.

        Raises:
            BackendError: this runner is closed, or there is not enough memory.
        """
        with self._busy:
            self._open()
            self._engine.cuda.cudaSetDevice(self._engine.device)
            fork = object.__new__(TensorRTRunner)
            fork._start(self._engine.retain(), self.precision)
            return fork

    def infer(self, arrays: Mapping[str, Any]) -> np.ndarray:
        """See `Runner.infer`. An input may also be an array on this GPU with DLPack or `__cuda_array_interface__`.

        Such an array is read in place, so it must be of the plan's type (int32) and C-contiguous.

        Raises:
            DataError: also if the shape is outside the plan's profiles, or an array on the GPU cannot be read there.
            BackendError: also if another thread is using this runner.
        """
        return self._infer(arrays, None)[0]

    def infer_timed(self, arrays: Mapping[str, Any]) -> Timing:
        """See `TimedRunner`. CUDA events measure the copies and the kernels. Raises the same errors as `infer`."""
        timing = self._infer(arrays, time.perf_counter())[1]
        assert timing is not None
        return timing

    def layer_times(self, arrays: Mapping[str, Any], iterations: int = 10) -> list[LayerTime]:
        """See `ProfiledRunner`. `trt.IProfiler` measures the layers in another context, without CUDA graphs."""
        with self._held():
            shape, index = self._shape_and_profile(arrays)
            profiler = layer_profiler(self._engine.backend.module)
            bucket = Bucket(self._engine, index, profiler)
            try:
                for _ in range(1 + iterations):
                    bucket.run(self._batch(arrays, bucket), shape, None)
            finally:
                bucket.close()
            return median_times(profiler.reports, 1 + iterations, f"{self._engine.backend.title}'s profiler")

    def _infer(self, arrays: Mapping[str, Any], started: float | None) -> tuple[np.ndarray, Timing | None]:
        with self._held():
            shape, index = self._shape_and_profile(arrays)
            bucket = self._buckets[index]
            return bucket.run(self._batch(arrays, bucket), shape, started)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Reserve this runner for this thread, and make its device the current device of the thread."""
        if not self._busy.acquire(blocking=False):
            raise BackendError("this runner is busy in another thread; give each thread its own: runner.fork()")
        try:
            self._open()
            self._engine.cuda.cudaSetDevice(self._engine.device)  # the current device is the thread's, not the runner's
            yield
        finally:
            self._busy.release()

    def _shape_and_profile(self, arrays: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
        """Return the (batch, sequence) of a batch, and the index of the smallest profile that accepts it."""
        shape = common_shape({name: shape_of(each) for name, each in self.needed(arrays).items()})
        index = covering(self.profiles, shape)
        if index is None:
            accepted = show_profiles(self.profiles)
            raise DataError(f"the batch has shape {shape}; the plan accepts (batch, sequence) from {accepted}")
        return shape, index

    def _batch(self, arrays: Mapping[str, Any], bucket: Bucket) -> dict[str, np.ndarray | DeviceArray]:
        return {name: self._input(name, each, bucket) for name, each in self.needed(arrays).items()}

    def _input(self, name: str, array: Any, bucket: Bucket) -> np.ndarray | DeviceArray:
        engine = self._engine
        on_device = on_gpu(name, array, engine.dtypes[name], engine.device, int(bucket.stream), engine.cuda)
        if on_device is not None:
            return on_device
        host = np.asarray(array)
        if host.dtype.kind not in "iub":
            raise DataError(f"{name} is {host.dtype}; the engine accepts integers")
        return host

    def _open(self) -> None:
        if self._closed:
            raise BackendError(f"this {self._engine.backend.title} runner is closed")

    def save_runtime_cache(self) -> None:
        """Save the kernels that TensorRT-RTX compiled, as closing the last runner does. Call it in a service that is killed."""
        self._engine.save_runtime_cache()

    @property
    def runtime_cache_state(self) -> str:
        """ "none" (TensorRT has no such cache), "new", or "loaded" if this start did not compile everything again."""
        return self._engine.runtime_cache_state

    def close(self) -> None:
        """Wait for a running batch, then free memory, streams, graphs and contexts, and the engine if no fork uses it."""
        with self._busy:
            if self._closed:
                return
            self._closed = True
            attempt(self._engine.cuda.cudaSetDevice, self._engine.device)
            for bucket in self._buckets:
                bucket.close()
            self._buckets = []
            self._engine.release()
