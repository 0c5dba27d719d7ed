"""TensorRT and CUDA in host memory, for the runner's logic; whatever is called is checked against the real packages.

Where tensorrt_rtx and cuda-python are installed, a name that they lack or arguments that their functions do not take fail
the call (`Bound`): the stand-ins cannot drift from what they stand for. Where there is no driver, each call of CUDA is made
of the real cuda-python too, which converts the arguments before it finds that out.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import types
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bound import Bound, real
from engine_fixtures import SMALL, TABLE, tiny_logits

from q8trt.engine.backend import Backend
from q8trt.engine.shapes import ShapeProfile
from q8trt.runtime.base import Runner
from q8trt.runtime.tensorrt.cuda import CheckedCuda


@dataclass
class FakeCuda:
    """The CUDA runtime over host memory; `fail` names a function that fails, from its `fail_from`-th call on."""

    fail: str = ""
    fail_from: int = 0
    device_of: int = 0
    memory: dict[int, Any] = field(default_factory=dict)
    handles: set[tuple[str, int]] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    clock: float = 0.0
    recording: dict[int, list[Any]] = field(default_factory=dict)
    graphs: dict[int, list[Any]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    cudaHostAllocPortable = 1
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaMemoryType = type("cudaMemoryType", (), {"cudaMemoryTypeDevice": 2, "cudaMemoryTypeManaged": 3})
    cudaStreamCaptureMode = type("cudaStreamCaptureMode", (), {"cudaStreamCaptureModeThreadLocal": 1})

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not inspect.ismethod(value) or not name.startswith("cuda") or name.startswith("cudaGetError"):
            return value

        def called(self: FakeCuda, *arguments: Any) -> Any:
            self.calls.append(name)
            failing = name == self.fail and self.calls.count(name) > self.fail_from
            if failing and name == "cudaStreamEndCapture":
                self.recording.clear()  # a capture that fails has ended all the same
            return (2, None) if failing else value(*arguments)

        return types.MethodType(called, self)

    def _made(self, kind: str) -> tuple[int, int]:
        number = len(self.calls) + 1000
        self.handles.add((kind, number))
        return 0, number

    def _gone(self, kind: str, number: int) -> tuple[int]:
        self.handles.remove((kind, number))
        return (0,)

    def cudaSetDevice(self, device: int) -> tuple[int]:
        return (0,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, types.SimpleNamespace(name=b"NVIDIA Fake\0\0")

    def cudaPointerGetAttributes(self, pointer: int) -> tuple[int, Any]:
        return 0, types.SimpleNamespace(type=2 if pointer in self.memory else 0, device=self.device_of)

    def _take(self, size: int) -> tuple[int, int]:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return self._take(size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        return self._take(size)

    def cudaFree(self, pointer: int) -> tuple[int]:
        del self.memory[pointer]
        return (0,)

    def cudaFreeHost(self, pointer: int) -> tuple[int]:
        del self.memory[pointer]
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return self._made("stream")

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return self._gone("stream", stream)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream not in self.recording
        return (0,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[int]:
        assert event in self.times
        return (0,)

    def cudaEventCreate(self) -> tuple[int, int]:
        return self._made("event")

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        return self._gone("event", event)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.times[event] = self.clock
        return (0,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:
        return 0, self.times[end] - self.times[start]

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        device, host = (target, source) if kind == 1 else (source, target)
        assert size <= len(self.memory[device])
        assert any(start <= host < start + len(block) for start, block in self.memory.items()), "not pinned"
        assert ("stream", stream) in self.handles
        ctypes.memmove(target, source, size)
        self.clock += 1
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.recording[stream] = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:
        graph = self._made("graph")
        self.graphs[graph[1]] = self.recording.pop(stream)
        return graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        made = self._made("exec")
        self.graphs[made[1]] = self.graphs[graph]
        return made

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:
        return self._gone("graph", graph)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:
        return self._gone("exec", graph)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        for work in self.graphs[graph]:
            work()
        return (0,)

    def cudaGetLastError(self) -> tuple[int]:
        return (2,)

    def cudaGetErrorName(self, code: int) -> tuple[int, bytes]:
        return 0, b"cudaErrorMemoryAllocation"

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, b"out of memory"


def token_logits(ids: np.ndarray) -> np.ndarray:
    """Logits (batch, sequence, 3) of a head that answers each token."""
    return np.stack([ids, -ids, ids * 2 + 1], -1).astype(np.float32)


class FakeContext:
    """An execution context of `tiny_onnx`, in NumPy, over the addresses that it is given."""

    def __init__(self, engine: FakeEngine) -> None:
        self.of, self.profile = engine, -1
        self.profiler, self.enqueue_emits_profile = None, True
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.address: dict[str, int] = {}
        engine.contexts.add(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return self.of.refuse != "set_optimization_profile_async"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.of.profiles[self.profile].covers(shape)
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.of.output_shape(self.shapes["input_ids"]) if name == "logits" else self.shapes[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.address[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.of.refuse == "execute_async_v3":
            return False
        engine, shapes, address = self.of, dict(self.shapes), dict(self.address)

        def view(name: str, kind: Any) -> np.ndarray:
            shape = engine.output_shape(shapes["input_ids"]) if name == "logits" else shapes[name]
            return np.frombuffer((ctypes.c_char * (4 * int(np.prod(shape)))).from_address(address[name]), kind).reshape(
                shape
            )

        def work() -> None:
            ids, mask = (view(name, np.int32) for name in engine.names[:2])
            logits = view("logits", np.float32)
            logits[:] = token_logits(ids) if engine.per_token else tiny_logits(ids, mask)
            engine.cuda.clock += 10

        self.of.runs.append((self.profile, shapes["input_ids"]))
        if self.profiler is not None and self.enqueue_emits_profile:
            for layer, ms in self.of.layers:
                self.profiler.report_layer_time(layer, ms * len(self.of.runs))
        if stream in self.of.cuda.recording:
            self.of.cuda.recording[stream].append(work)
        else:
            work()
        return True


class FakeEngine:
    """The engine of `tiny_onnx`, or with `per_token` one of `token_logits`. `refuse` names what says no."""

    per_token = False
    num_io_tensors = 3
    names = ("input_ids", "attention_mask", "logits")

    def __init__(self, cuda: FakeCuda, owner: Any) -> None:
        self.cuda, self.owner, self.refuse = cuda, owner, ""
        self.profiles: tuple[ShapeProfile, ...] = (SMALL,)
        self.contexts: weakref.WeakSet[FakeContext] = weakref.WeakSet()
        self.runs: list[tuple[int, tuple[int, ...]]] = []
        self.made_with: list[Any] = []
        self.configs: list[FakeConfig] = []
        self.layers = [
            ("table", 0.1),
            ("mean", 0.2),
            ("mean", 0.3),
        ]  # ms in the first batch, twice that in the second, ...

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, 3) if self.per_token else (shape[0], 3)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def create_execution_context(self, how: Any) -> Any:
        self.made_with.append(how)
        return (
            None
            if self.refuse == "create_execution_context"
            else Bound(FakeContext(self), _of(self.owner, "IExecutionContext"))
        )

    def create_runtime_config(self) -> Any:
        self.configs.append(FakeConfig(self.owner))
        return Bound(self.configs[-1], _of(self.owner, "IRuntimeConfig"))

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name == "logits" else "input"

    def get_tensor_dtype(self, name: str) -> Any:
        return np.float32 if name == "logits" else np.int32

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, int]]:
        return [self.profiles[profile_index].min, self.profiles[profile_index].opt, self.profiles[profile_index].max]


class FakeConfig:
    """TensorRT-RTX's IRuntimeConfig, which holds an IRuntimeCache whose content is `compiled`."""

    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = ""
    compiled, takes_cache = b"compiled kernels", True

    def __init__(self, owner: Any) -> None:
        self.owner, self.cache = owner, None

    def create_runtime_cache(self) -> Any:
        return Bound(FakeCache(), _of(self.owner, "IRuntimeCache"))

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return self.takes_cache


class FakeCache:
    """Takes back what it wrote, and nothing else."""

    def deserialize(self, blob: bytes) -> bool:
        return blob == FakeConfig.compiled

    def serialize(self) -> bytes:
        return FakeConfig.compiled


def _of(owner: Any, name: str) -> Any:
    return None if owner is None else getattr(owner, name)


@functools.cache
def has_driver() -> bool:
    """Return whether CUDA calls would reach a GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def install(name: str = "tensorrt", patch: Any = setattr) -> types.SimpleNamespace:
    """Put the stand-ins in the place of TensorRT and CUDA by `patch(object, name, value)`; returns them."""
    from q8trt.runtime.tensorrt import runner as tensorrt_runner

    owner, cudart = real("tensorrt_rtx"), real("cuda.bindings.runtime")
    cuda = FakeCuda()
    engine = FakeEngine(cuda, owner)
    fake = types.SimpleNamespace(cuda=cuda, engine=engine, loads=0, log=types.SimpleNamespace(errors=[]))
    fake.runtimes, fake.host_code = weakref.WeakSet(), None

    class FakeRuntime:
        engine_host_code_allowed = False

        def __init__(self, log: Any) -> None:
            fake.runtimes.add(self)

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            fake.loads += 1
            fake.host_code = self.engine_host_code_allowed
            if fake.engine is None:
                fake.log.errors.append("the plan is of version 10.1, this is 10.13")
                return None
            return Bound(fake.engine, _of(owner, "ICudaEngine"))

    trt: Any = types.ModuleType(name)
    trt.TensorIOMode = types.SimpleNamespace(INPUT="input")
    trt.nptype = lambda kind: kind
    trt.IProfiler = owner.IProfiler if owner else object
    trt.Runtime = lambda log: Bound(FakeRuntime(log), _of(owner, "Runtime"))
    trt.ExecutionContextAllocationStrategy = types.SimpleNamespace(ON_PROFILE_CHANGE="on profile change")
    if name == "tensorrt_rtx":
        trt.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="disabled")
        trt.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(LAZY="lazy", EAGER="eager", NONE="none")
    for kind, members in vars(trt).items() if owner else ():
        for member in vars(members) if isinstance(members, types.SimpleNamespace) else ():
            assert member in getattr(owner, kind).__members__, f"{kind} has no {member}"
    version = "10.13.2.6" if name == "tensorrt" else "1.7.1.116"
    patch(Backend, "logger", lambda self: fake.log)
    patch(tensorrt_runner, "find_backend", lambda: Backend(name, trt, version))
    patch(tensorrt_runner, "plan_runtime", lambda wanted, lean: Backend(wanted, trt, version))
    converts = cudart is not None and not has_driver()
    patch(tensorrt_runner, "cuda_runtime", lambda wanted: CheckedCuda(Bound(cuda, cudart, converts)))
    return fake


RANDOM = np.random.default_rng(1)


def batch(rows: int = 3, length: int = 5) -> dict[str, np.ndarray]:
    return {
        "input_ids": RANDOM.integers(0, len(TABLE), (rows, length)),
        "attention_mask": RANDOM.integers(0, 2, (rows, length)),
    }


def check(runner: Runner, rows: int = 3, length: int = 5) -> None:
    """`runner` answers what NumPy does, and what it answered before stays as it was."""
    first, second = batch(rows, length), batch(rows, length)
    logits = runner.infer(first)
    np.testing.assert_array_equal(runner.infer(second), tiny_logits(**second))
    np.testing.assert_array_equal(logits, tiny_logits(**first))


def nothing_left(fake: types.SimpleNamespace) -> bool:
    """Return whether all memory, handles, contexts and runtimes are released."""
    contexts = len(fake.engine.contexts) if fake.engine else 0
    return not (fake.cuda.memory or fake.cuda.handles or contexts or len(fake.runtimes))
