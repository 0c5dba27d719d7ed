"""The CUDA runtime through cuda-python: calls that raise, and handles that are freed in the reverse order.

Importing this module does not import cuda-python; opening the first runner does.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from q8trt.console.names import one_line
from q8trt.engine.backend import INSTALL, TENSORRT
from q8trt.errors import BackendError

_log = logging.getLogger(__name__)
_NO_DRIVER = (
    "no NVIDIA driver or GPU can be used ({reason}): run on ONNX Runtime instead (device cpu, or backend onnxruntime), "
    "or see `q8trt doctor`"
)


class CheckedCuda:
    """`cuda.bindings.runtime` whose functions raise BackendError instead of returning an error code.

    `cuda.cudaMalloc(n)` returns only the pointer. A function with several results returns a tuple; without results, None.
    Constants, such as `cudaHostAllocPortable`, are passed through.
    """

    def __init__(self, runtime: ModuleType) -> None:
        self._runtime = runtime
        self.host_to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.device_to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def __getattr__(self, name: str) -> Any:
        function: Callable[..., Any] = getattr(self._runtime, name)
        if not callable(function) or isinstance(function, type):
            return function

        def checked(*arguments: Any) -> Any:
            try:
                code, *results = function(*arguments)
            except RuntimeError as error:  # cuda-python could not open libcuda
                raise BackendError(_NO_DRIVER.format(reason=one_line(error))) from error
            if int(code) != 0:
                raise BackendError(self._message(name, code))
            return results[0] if len(results) == 1 else tuple(results) or None

        return checked

    def forget_error(self) -> None:
        """Clear the error that CUDA stores for the thread, so the next call does not report it again."""
        self._runtime.cudaGetLastError()

    def _message(self, name: str, code: Any) -> str:
        title = text(self._runtime.cudaGetErrorName(code)[1])
        reason = text(self._runtime.cudaGetErrorString(code)[1])
        if title in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary"):
            return _NO_DRIVER.format(reason=f"{title}: {reason}")
        return f"CUDA: {name} failed with {title}: {reason}"


def cuda_runtime(backend: str = TENSORRT) -> CheckedCuda:
    """Return the CUDA runtime of cuda-python. Raises BackendError if it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # cuda-python before 12.8
        except ImportError as error:
            raise BackendError(f"cuda-python is not usable ({one_line(error)}): {INSTALL[backend]}") from error
    return CheckedCuda(runtime)


class Handles:
    """Handles of CUDA, which `close` frees in the reverse order. Closing twice is harmless."""

    def __init__(self, cuda: CheckedCuda) -> None:
        self._cuda = cuda
        self._stack = contextlib.ExitStack()

    def add(self, release: Callable[..., Any], handle: Any) -> Any:
        """Return `handle`, which `close` passes to `release`."""
        self._stack.callback(attempt, release, handle)
        return handle

    def device_memory(self, size: int) -> int:
        """Allocate `size` bytes on the device, and return their address."""
        return int(self.add(self._cuda.cudaFree, self._cuda.cudaMalloc(size)))

    def pinned(self, size: int) -> np.ndarray:
        """Allocate `size` bytes of page-locked host memory, uint8. Only copies of such memory are asynchronous."""
        cuda = self._cuda
        address = int(self.add(cuda.cudaFreeHost, cuda.cudaHostAlloc(size, cuda.cudaHostAllocPortable)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def stream(self) -> Any:
        """Create a stream that does not wait for the legacy default stream, which would end another thread's capture."""
        return self.add(
            self._cuda.cudaStreamDestroy, self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking)
        )

    def event(self) -> Any:
        """Create an event with a timestamp."""
        return self.add(self._cuda.cudaEventDestroy, self._cuda.cudaEventCreate())

    def close(self) -> None:
        """Free everything."""
        self._stack.close()


def attempt(function: Callable[[Any], Any], handle: Any) -> None:
    """Call `function` while closing, and log an error. Calls after a CUDA error also fail and must not hide the first one."""
    try:
        function(handle)
    except BackendError as error:
        _log.warning("while closing: %s", error)


def text(name: bytes | str) -> str:
    """Return a name of cuda-python as text. It may be bytes, in some versions padded with zeros."""
    return (name.decode() if isinstance(name, bytes) else name).rstrip("\0")
