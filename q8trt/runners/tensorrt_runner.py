"""A plan on TensorRT or TensorRT-RTX, with CUDA called through cuda-python: no torch is needed to serve an engine.

The life of one batch: host arrays -> device buffers -> `execute_async_v3` -> host logits, all on one stream. Buffers are
as large as the profile's largest shape and are made once. A runner is not safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from q8trt.engine.backend import INSTALL, Backend, find_backend, one_line
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import BackendError, DataError, EngineError
from q8trt.runners.base import Runner

_NO_DRIVER = (
    "no NVIDIA driver or GPU can be used ({reason}): run on ONNX Runtime instead (backend onnxruntime), "
    "or see `q8trt doctor`"
)


class CheckedCuda:
    """`cuda.bindings.runtime` whose functions raise BackendError instead of returning an error code.

    `cuda.cudaMalloc(n)` returns the pointer alone; a function with several results returns a tuple, with none None.
    """

    def __init__(self, runtime: ModuleType) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        function: Callable[..., Any] = getattr(self._runtime, name)

        def checked(*arguments: Any) -> Any:
            try:
                code, *results = function(*arguments)
            except RuntimeError as error:  # cuda-python could not open libcuda
                raise BackendError(_NO_DRIVER.format(reason=one_line(error))) from error
            if int(code) != 0:
                raise BackendError(self._message(name, code))
            return results[0] if len(results) == 1 else tuple(results) or None

        return checked

    def _message(self, name: str, code: Any) -> str:
        title, text = (
            describe(code)[1].decode() for describe in (self._runtime.cudaGetErrorName, self._runtime.cudaGetErrorString)
        )
        if title in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary"):
            return _NO_DRIVER.format(reason=f"{title}: {text}")
        return f"CUDA: {name} failed with {title}: {text}"


def cuda_runtime(backend: str = "tensorrt") -> CheckedCuda:
    """The CUDA runtime of cuda-python. Raises BackendError when it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # cuda-python before 12.8
        except ImportError as error:
            raise BackendError(f"cuda-python is not usable ({one_line(error)}): {INSTALL[backend]}") from error
    return CheckedCuda(runtime)


@dataclass(frozen=True)
class _Buffer:
    """Device memory of one tensor: its address, its size in bytes and the NumPy type of its elements."""

    pointer: int
    size: int
    dtype: Any


class TensorRTRunner(Runner):
    """Runs a serialized plan.

    Args:
        plan_path: the plan.
        precision: what it computes in, for reports: see `Runner`.
        backend: "tensorrt" or "tensorrt_rtx": the one that built the plan; default as `find_backend`.
        device: index of the CUDA device.

    Attributes:
        shapes: the plan's optimization profile.

    Raises:
        ConfigError: the backend is unknown.
        BackendError: the backend or cuda-python is not installed, no GPU can be used, or its memory is full.
        EngineError: the plan is missing, damaged, or of another version or GPU; TensorRT's own line is quoted.
    """

    def __init__(self, plan_path: str | Path, precision: str, backend: str | None = None, device: int = 0) -> None:
        self.precision = precision
        self._device = device
        self._buffers: dict[str, _Buffer] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream: Any = None
        path = Path(plan_path)
        if not path.is_file():
            raise EngineError(f"{path} does not exist; build the engine first")
        self._backend: Backend = find_backend(backend)
        self.backend = self._backend.name
        self._cuda = cuda_runtime(self.backend)
        try:
            self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        cuda, trt = self._cuda, self._backend.module
        cuda.cudaSetDevice(self._device)
        self.device = _text(cuda.cudaGetDeviceProperties(self._device).name)
        self._backend.forget_errors()
        self._runtime = trt.Runtime(self._backend.logger())
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"{self._backend.title} cannot load {path} on {self.device}; "
                f"rebuild it with this version on this GPU: {self._backend.last_error()}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"{self._backend.title} made no execution context: {self._backend.last_error()}")
        self._stream = cuda.cudaStreamCreate()
        self._allocate(path)

    def _allocate(self, path: Path) -> None:
        """Find the tensors, read the profile, and make a buffer for each tensor at the largest shape."""
        engine, context, trt = self._engine, self._context, self._backend.module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.input_names = tuple(name for name in names if is_input[name])
        outputs = [name for name in names if not is_input[name]]
        if not self.input_names or not outputs:
            raise EngineError(f"{path} has inputs {list(self.input_names)} and outputs {outputs}; expected some of each")
        self._output = "logits" if "logits" in outputs else outputs[0]
        low, best, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(self.input_names[0], 0))
        self.shapes = ShapeProfile(low, best, high)
        for name in self.input_names:
            context.set_input_shape(name, high)
        for name in names:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            size = dtype.itemsize * int(np.prod(tuple(context.get_tensor_shape(name))))
            self._buffers[name] = _Buffer(int(self._cuda.cudaMalloc(size)), size, dtype)
            context.set_tensor_address(name, self._buffers[name].pointer)

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.infer`. Raises DataError also when the shape lies outside the plan's profile."""
        if self._context is None:
            raise BackendError(f"this {self._backend.title} runner is closed")
        batch = self.checked(arrays)
        shape = next(iter(batch.values())).shape
        if not self.shapes.covers(shape):
            raise DataError(f"the batch has shape {shape}; the plan takes (batch, sequence) from {self.shapes}")
        cuda = self._cuda
        cuda.cudaSetDevice(self._device)  # the current device is the thread's, not the runner's
        self._backend.forget_errors()
        # Pageable copies return once the host array is read or written, so these arrays need not outlive the call.
        hosts = {name: np.ascontiguousarray(each, self._buffers[name].dtype) for name, each in batch.items()}
        for name, host in hosts.items():
            self._copy(self._buffers[name].pointer, host.ctypes.data, host.nbytes, cuda.host_to_device)
            self._accepted(self._context.set_input_shape(name, shape), f"set_input_shape of {name}")
        self._accepted(self._context.execute_async_v3(int(self._stream)), "execute_async_v3")
        logits = np.empty(tuple(self._context.get_tensor_shape(self._output)), self._buffers[self._output].dtype)
        self._copy(logits.ctypes.data, self._buffers[self._output].pointer, logits.nbytes, cuda.device_to_host)
        cuda.cudaStreamSynchronize(self._stream)
        return logits.astype(np.float32, copy=False)
