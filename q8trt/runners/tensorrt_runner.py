"""A plan on TensorRT or TensorRT-RTX, with CUDA called through cuda-python: no torch is needed to serve an engine.

The life of one batch: host arrays -> device buffers -> `execute_async_v3` -> host logits, all on one stream. Buffers
are as large as the profile's largest shape and are made once. A runner is not safe to share between threads. See
"Performing Inference" (Python API documentation) in TensorRT's documentation.
"""

from __future__ import annotations

import logging
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

_log = logging.getLogger(__name__)
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
        self.host_to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.device_to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

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
        title = _text(self._runtime.cudaGetErrorName(code)[1])
        text = _text(self._runtime.cudaGetErrorString(code)[1])
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
        try:
            self._runtime = trt.Runtime(self._backend.logger())
        except TypeError as error:  # pybind11's word for TensorRT's null pointer
            raise BackendError(f"{self._backend.title} cannot start: {self._backend.last_error()}") from error
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
            raise EngineError(f"{path} has inputs {list(self.input_names)} and outputs {outputs}; both are needed")
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
        hosts = {name: np.ascontiguousarray(each, self._buffers[name].dtype) for name, each in batch.items()}
        for name, host in hosts.items():
            self._copy(self._buffers[name].pointer, host.ctypes.data, host.nbytes, cuda.host_to_device)
            self._accepted(self._context.set_input_shape(name, shape), f"set_input_shape of {name}")
        self._accepted(self._context.execute_async_v3(int(self._stream)), "execute_async_v3")
        logits = np.empty(tuple(self._context.get_tensor_shape(self._output)), self._buffers[self._output].dtype)
        self._copy(logits.ctypes.data, self._buffers[self._output].pointer, logits.nbytes, cuda.device_to_host)
        cuda.cudaStreamSynchronize(self._stream)
        return logits.astype(np.float32, copy=False)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream)

    def _accepted(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise BackendError(f"{self._backend.title}: {what} was refused: {self._backend.last_error()}")

    def close(self) -> None:
        """Free the device memory, the stream, the context, the engine and the runtime, in this order."""
        buffers, stream = self._buffers, self._stream
        self._buffers, self._stream = {}, None
        for buffer in buffers.values():
            self._release(self._cuda.cudaFree, buffer.pointer)
        if stream is not None:
            self._release(self._cuda.cudaStreamDestroy, stream)
        self._context = None
        self._engine = None
        self._runtime = None

    def _release(self, function: Callable[[Any], None], handle: Any) -> None:
        """Call `function`; after a CUDA error every later call fails too, and must not hide the first one."""
        try:
            function(handle)
        except BackendError as error:
            _log.warning("while closing: %s", error)


def _text(name: bytes | str) -> str:
    """cuda-python gives names as bytes, in some versions padded with zeros."""
    return (name.decode() if isinstance(name, bytes) else name).rstrip("\0")
