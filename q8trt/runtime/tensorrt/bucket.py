"""The execution context, stream, buffers, events and CUDA graph of one optimization profile.

No device or pinned memory is allocated while batches run, because buffers fit the profile's largest shape. A context is switched
to its profile once, because switching waits for the GPU. See "Performing Inference" and "CUDA Graphs" in TensorRT's
documentation.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from q8trt.errors import BackendError
from q8trt.runtime.base import Timing
from q8trt.runtime.tensorrt.cuda import Handles, attempt
from q8trt.runtime.tensorrt.device_arrays import DeviceArray
from q8trt.runtime.tensorrt.engine import SharedEngine

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Buffer:
    """The memory of one tensor at its largest shape: a device address, and pinned host memory for the copies."""

    pointer: int
    host: np.ndarray

    def view(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the host memory as an array of `shape`."""
        return self.host[: int(np.prod(shape))].reshape(shape)


class Bucket:
    """Runs the batches of one profile, in one thread at a time.

    Args:
        engine: the engine.
        index: the index of the profile.
        profiler: a `trt.IProfiler` of single layers; with it, no CUDA graph is captured.

    Raises:
        BackendError: there is not enough memory, or the library refused a call; nothing stays allocated.
    """

    def __init__(self, engine: SharedEngine, index: int, profiler: Any = None) -> None:
        self._engine, self._cuda = engine, engine.cuda
        self._handles = Handles(engine.cuda)
        self._context: Any = None
        self._buffers: dict[str, _Buffer] = {}
        self._bound: tuple[Any, ...] | None = None  # the last shape and addresses of the context
        self._graph: Any = None
        self._captures = engine.captures and profiler is None
        try:
            self._open(index, profiler)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # an exception that is kept must not keep the context
            self.close()
            raise

    def _open(self, index: int, profiler: Any) -> None:
        engine, handles = self._engine, self._handles
        self.stream = handles.stream()
        self._events = [handles.event() for _ in range(4)]
        self._produced = handles.event()
        self._context = context = engine.new_context(profiler)
        engine.ask(context.set_optimization_profile_async, index, int(self.stream))
        self._cuda.cudaStreamSynchronize(self.stream)
        for name in engine.input_names:
            engine.ask(context.set_input_shape, name, engine.profiles[index].max)
        for name in engine.input_names + engine.output_names:
            dtype = engine.dtypes[name]
            size = dtype.itemsize * int(np.prod(tuple(context.get_tensor_shape(name))))
            self._buffers[name] = _Buffer(handles.device_memory(size), handles.pinned(size).view(dtype))

    def run(
        self, batch: Mapping[str, Any], shape: tuple[int, ...], started: float | None
    ) -> tuple[np.ndarray, Timing | None]:
        """Run one batch and wait for it.

        Args:
            batch: for each input an integer array on the host or a `DeviceArray`.
            shape: their common (batch, sequence).
            started: the time at which the call began, by `time.perf_counter`; None without timing.

        Returns:
            logits, float32, on the host, with the shape that `Runner.infer` returns; and the timing, or None.
        """
        cuda, stream, timed = self._cuda, self.stream, started is not None
        addresses, copies = {}, []
        for name, array in batch.items():
            buffer = self._buffers[name]
            addresses[name] = buffer.pointer
            if isinstance(array, DeviceArray):
                addresses[name] = array.pointer
                self._wait_for(array)
            else:
                host = buffer.view(shape)
                np.copyto(host, array, casting="unsafe")
                copies.append((buffer.pointer, host))
        self._mark(0, timed)
        for pointer, host in copies:
            cuda.cudaMemcpyAsync(pointer, host.ctypes.data, host.nbytes, cuda.host_to_device, stream)
        self._mark(1, timed)
        launched = time.perf_counter()
        by_graph = self._launch(shape, addresses)
        enqueue_ms = 1000 * (time.perf_counter() - launched)
        self._mark(2, timed)
        name = self._engine.logits
        answer = self._buffers[name].view(tuple(self._context.get_tensor_shape(name)))
        cuda.cudaMemcpyAsync(
            answer.ctypes.data, self._buffers[name].pointer, answer.nbytes, cuda.device_to_host, stream
        )
        self._mark(3, timed)
        cuda.cudaStreamSynchronize(stream)
        logits = answer.astype(np.float32)
        if started is None:
            return logits, None
        h2d, gpu, d2h = (
            float(cuda.cudaEventElapsedTime(self._events[index], self._events[index + 1])) for index in range(3)
        )
        return logits, Timing(h2d, gpu, d2h, enqueue_ms, 1000 * (time.perf_counter() - started), by_graph)

    def _mark(self, index: int, timed: bool) -> None:
        if timed:
            self._cuda.cudaEventRecord(self._events[index], self.stream)

    def _wait_for(self, array: DeviceArray) -> None:
        """Make the stream wait for the work that produces `array`."""
        if array.stream is not None:
            self._cuda.cudaEventRecord(self._produced, array.stream)
            self._cuda.cudaStreamWaitEvent(self.stream, self._produced, 0)

    def _launch(self, shape: tuple[int, ...], addresses: Mapping[str, int]) -> bool | None:
        """Enqueue a batch; return True if a captured CUDA graph was launched, else `SharedEngine.graph_state`.

        The first batch of a shape is enqueued without a graph, because TensorRT then updates state that depends on the shape,
        and that must not be captured (TensorRT documentation, "CUDA Graphs"). The second batch in a row is captured. It and
        all following ones are launched from the graph, until the shape or the addresses change. So alternating shapes never
        capture a graph that is used only once.
        """
        wanted = (shape, tuple(addresses.values()))
        if wanted == self._bound and self._captures and (self._graph is not None or self._capture()):
            self._cuda.cudaGraphLaunch(self._graph, self.stream)
            return True
        if wanted != self._bound:
            self._bind(shape, addresses)
        self._execute()
        self._bound = wanted
        return self._engine.graph_state

    def _bind(self, shape: tuple[int, ...], addresses: Mapping[str, int]) -> None:
        """Set the shapes and addresses of the context, and delete the graph of the previous ones."""
        self._drop_graph()
        self._bound = None
        ask, context = self._engine.ask, self._context
        for name in self._engine.input_names:
            ask(context.set_input_shape, name, shape)
            ask(context.set_tensor_address, name, addresses[name])
        for name in self._engine.output_names:
            ask(context.set_tensor_address, name, self._buffers[name].pointer)

    def _execute(self) -> None:
        self._engine.ask(self._context.execute_async_v3, int(self.stream))

    def _capture(self) -> bool:
        """Capture a graph of the current batch. If that fails, all later batches are enqueued without a graph."""
        cuda = self._cuda
        try:
            # thread-local: other threads may allocate meanwhile
            cuda.cudaStreamBeginCapture(self.stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
            try:
                self._execute()
            finally:
                graph = cuda.cudaStreamEndCapture(self.stream)
            try:
                self._graph = cuda.cudaGraphInstantiate(graph, 0)
            finally:
                cuda.cudaGraphDestroy(graph)
        except BackendError as error:
            cuda.forget_error()
            self._captures = False
            _log.warning("running without CUDA graphs: %s", error)
        return self._captures

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            attempt(self._cuda.cudaGraphExecDestroy, graph)

    def close(self) -> None:
        """Free everything: the graph and the context first, then the memory that they use."""
        self._drop_graph()
        self._buffers = {}
        self._context = None
        self._handles.close()
