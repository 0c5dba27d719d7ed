"""The runner's logic over stand-ins (`tensorrt_fakes`) whose every call is checked against the real packages' signatures."""

import gc
import logging
import subprocess
import sys
import threading
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE

import q8trt
from q8trt.engine.shapes import bucket_profiles
from q8trt.errors import BackendError, DataError, EngineError
from q8trt.hardware.gpu import gpus
from q8trt.runtime import RunOptions
from q8trt.runtime.base import TimedRunner
from q8trt.runtime.tensorrt.cuda import cuda_runtime
from q8trt.runtime.tensorrt.engine import layer_profiler
from q8trt.runtime.tensorrt.runner import TensorRTRunner

pytest.importorskip("onnx", reason="onnx is not installed")
from bound import Bound, real
from engine_fixtures import SMALL, tiny_logits
from tensorrt_fakes import batch, check, has_driver, install, nothing_left, token_logits


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    return install("tensorrt", monkeypatch.setattr)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    return path


# The stand-ins' own checks


def test_stand_ins_refuse_what_the_real_packages_lack() -> None:
    trt, cudart = real("tensorrt_rtx"), real("cuda.bindings.runtime")
    if trt is None or cudart is None:
        pytest.skip("TensorRT-RTX or cuda-python is not installed")

    class Invented:
        def set_input_shape(self, *arguments: Any) -> bool:
            return True

        def set_binding_shape(self, *arguments: Any) -> bool:
            return True

        def cudaMalloc(self, *arguments: Any) -> int:
            return 0

    context = Bound(Invented(), trt.IExecutionContext)
    assert context.set_input_shape("input_ids", (1, 2))
    for wrong in (("input_ids",), ("input_ids", 3), (3, (1, 2)), ("input_ids", (1, 2), 3)):
        with pytest.raises(AssertionError, match="set_input_shape"):
            context.set_input_shape(*wrong)
    with pytest.raises(AssertionError, match="IExecutionContext has no set_binding_shape"):
        context.set_binding_shape(0, (1, 2))
    with pytest.raises(AssertionError, match="IExecutionContext has no nonsense"):
        context.nonsense = 1
    with pytest.raises(AssertionError, match="cudaMalloc"):
        Bound(Invented(), cudart).cudaMalloc(1, 2)
    if not has_driver():
        assert Bound(Invented(), cudart, converts=True).cudaMalloc(1) == 0
        with pytest.raises(TypeError):
            Bound(Invented(), cudart, converts=True).cudaMalloc("many")


def test_what_is_read_of_real_structures_is_there() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    assert hasattr(cudart.cudaDeviceProp, "name")
    assert hasattr(cudart.cudaPointerAttributes, "type")
    assert hasattr(cudart.cudaPointerAttributes, "device")
    for name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary"):
        assert name in cudart.cudaError_t.__members__


# Batches


def test_batches_run_and_everything_is_freed(fake: types.SimpleNamespace, plan: Path) -> None:
    runner = TensorRTRunner(plan, "int8")
    assert runner.label == "TensorRT, NVIDIA Fake, int8"
    assert runner.input_names == ("input_ids", "attention_mask")
    assert runner.profiles == (SMALL,)
    # on the device and pinned on the host: logits and two inputs, as large as the profile
    assert sorted(map(len, fake.cuda.memory.values())) == sorted(2 * [4 * 3 * 4, 4 * 16 * 4, 4 * 16 * 4])
    for rows, length in ((1, 1), (4, 16), (2, 3)):
        arrays = batch(rows, length)
        transposed = {name: np.asfortranarray(array) for name, array in arrays.items()}
        np.testing.assert_array_equal(runner.infer(transposed), tiny_logits(**arrays))
        check(runner, rows, length)
    allocated = sum(fake.cuda.calls.count(name) for name in ("cudaMalloc", "cudaHostAlloc"))
    assert allocated == len(fake.cuda.memory)  # nothing was allocated for a batch
    runner.close()
    runner.close()
    assert nothing_left(fake)
    for use in (lambda: runner.infer(batch()), lambda: runner.fork()):
        with pytest.raises(BackendError, match=r"this TensorRT 10\.13\.2\.6 runner is closed"):
            use()


def test_logits_of_tokens(fake: types.SimpleNamespace, plan: Path) -> None:
    """Buffers are as large as the profile's (batch, sequence, outputs), and each batch has its own shape."""
    fake.engine.per_token = True
    with TensorRTRunner(plan, "int8") as runner:
        assert max(map(len, fake.cuda.memory.values())) == 4 * 16 * 3 * 4
        for rows, length in ((1, 1), (4, 16), (2, 3), (2, 3), (2, 3)):  # the last from a CUDA graph
            arrays = batch(rows, length)
            logits = runner.infer(arrays)
            assert (logits.shape, logits.dtype) == ((rows, length, 3), np.float32)
            np.testing.assert_array_equal(logits, token_logits(arrays["input_ids"]))


def test_each_profile_has_a_context_and_takes_the_batches_that_fit_it_best(
    fake: types.SimpleNamespace, plan: Path
) -> None:
    fake.engine.profiles = bucket_profiles((4, 16), 2, 8)
    with TensorRTRunner(plan, "int8") as runner:
        assert len(fake.engine.contexts) == 2
        assert fake.engine.made_with == ["on profile change"] * 2
        for rows, length in ((8, 4), (1, 5), (8, 16), (2, 1)):
            check(runner, rows, length)
        assert [profile for profile, _ in fake.engine.runs] == [0, 0, 1, 1, 1, 1, 0, 0]
        with pytest.raises(DataError, match=r"from 1x1 to 8x4, best at 2x4; 1x5 to 8x16, best at 2x16"):
            runner.infer(batch(1, 17))
    assert nothing_left(fake)


def test_inputs_are_checked(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        with pytest.raises(DataError) as caught:
            runner.infer(batch(5, 16))
        assert "shape (5, 16); the plan accepts (batch, sequence) from 1x1 to 4x16, best at 2x8" in str(caught.value)
        with pytest.raises(DataError, match=r"\['attention_mask'\] missing from the batch"):
            runner.infer({"input_ids": np.ones((1, 2), int)})
        with pytest.raises(DataError, match="inputs must share one"):
            runner.infer({"input_ids": np.ones((1, 2), int), "attention_mask": np.ones((1, 3), int)})
        with pytest.raises(DataError, match="input_ids is float64; the engine accepts integers"):
            runner.infer(batch() | {"input_ids": np.ones((3, 5))})
        check(runner)


# CUDA graphs


def test_the_second_batch_of_a_shape_is_captured(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        seen = []
        for shape in ((2, 3), (2, 3), (2, 3), (1, 3), (1, 3), (2, 3)):
            arrays, before = batch(*shape), list(fake.cuda.calls)
            np.testing.assert_array_equal(runner.infer(arrays), tiny_logits(**arrays))
            new = fake.cuda.calls[len(before) :]
            seen.append(("cudaStreamBeginCapture" in new, "cudaGraphLaunch" in new, "cudaGraphExecDestroy" in new))
        assert seen == [
            (False, False, False),  # enqueued, so that nothing of the first time is captured
            (True, True, False),
            (False, True, False),
            (False, False, True),  # another shape: the graph is of no use
            (True, True, False),
            (False, False, True),
        ]
        assert len(fake.engine.runs) == 5  # 3 enqueued and 2 captured
    assert nothing_left(fake)


def test_alternating_shapes_are_never_captured(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        for length in (3, 4) * 3:
            arrays = batch(2, length)
            np.testing.assert_array_equal(runner.infer(arrays), tiny_logits(**arrays))
    assert "cudaStreamBeginCapture" not in fake.cuda.calls


def test_graphs_can_be_turned_off(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8", options=RunOptions(cuda_graph=False)) as runner:
        for _ in range(3):
            assert runner.infer_timed(batch()).cuda_graph is False
    assert "cudaGraphLaunch" not in fake.cuda.calls


@pytest.mark.parametrize("step", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_what_cannot_be_captured_still_runs(
    fake: types.SimpleNamespace, plan: Path, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    fake.cuda.fail = step
    with TensorRTRunner(plan, "int8") as runner:
        for _ in range(4):
            check(runner)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"running without CUDA graphs: CUDA: {step} failed with cudaErrorMemoryAllocation" in caplog.text
    assert fake.cuda.calls.count("cudaGetLastError") == 1  # TensorRT looks at it after its launches
    assert nothing_left(fake)


# Timing


def test_timing_by_events(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        assert isinstance(runner, TimedRunner)
        first, second = runner.infer_timed(batch()), runner.infer_timed(batch())
    for timing in (first, second):  # the stand-in's clock: 1 a copy, 10 a run
        assert (timing.h2d_ms, timing.gpu_ms, timing.d2h_ms) == (2, 10, 1)
        assert 0 < timing.enqueue_ms < timing.host_ms
    assert (first.cuda_graph, second.cuda_graph) == (False, True)
    with pytest.raises(BackendError, match="is closed"):
        runner.infer_timed(batch())


def test_inference_records_no_events(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        runner.infer(batch())
    assert "cudaEventRecord" not in fake.cuda.calls


# Layers


def test_layers_are_timed_in_a_context_of_their_own(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        check(runner)
        fake.engine.runs.clear()
        # Batches 1 to 4, of which the first does not count: the median factor is 3; two layers of one name are one.
        found = runner.layer_times(batch(2, 3), iterations=3)
        assert [(each.name, pytest.approx(each.ms)) for each in found] == [("table", 0.3), ("mean", 1.5)]
        assert fake.engine.runs == [(0, (2, 3))] * 4
        assert "cudaStreamBeginCapture" not in fake.cuda.calls[-20:]
        assert len(fake.engine.contexts) == 1  # the other one is gone
        check(runner)
        with pytest.raises(DataError, match=r"shape \(5, 16\); the plan accepts"):
            runner.layer_times(batch(5, 16))
        fake.engine.layers.clear()
        with pytest.raises(BackendError, match=r"^TensorRT 10\.13\.2\.6's profiler reported no layer"):
            runner.layer_times(batch())
        fake.engine.refuse = "execute_async_v3"
        with pytest.raises(BackendError, match="execute_async_v3 was refused"):
            runner.layer_times(batch())
    assert nothing_left(fake)
    with pytest.raises(BackendError, match="is closed"):
        runner.layer_times(batch())


def test_the_profiler_is_one_of_tensorrts() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    profiler = layer_profiler(trt)
    assert isinstance(profiler, trt.IProfiler)
    for ms in (1.0, 2.0):
        profiler.report_layer_time("gemm", ms)
    assert profiler.reports == {"gemm": [1.0, 2.0]}


# Threads


def test_forks_share_the_engine(fake: types.SimpleNamespace, plan: Path) -> None:
    runner = TensorRTRunner(plan, "int8")
    forks = [runner.fork() for _ in range(8)]
    runner.close()  # the engine stays as long as anyone uses it
    forks.append(forks[0].fork())
    assert (fake.loads, len(fake.engine.contexts), len(fake.runtimes)) == (1, 9, 1)

    def work(fork: TensorRTRunner) -> None:
        for _ in range(20):
            check(fork)

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(work, forks))
    for fork in forks:
        assert len(fake.runtimes) == 1
        fork.close()
    assert nothing_left(fake)


def test_two_threads_in_one_runner_are_told(
    fake: types.SimpleNamespace, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with TensorRTRunner(plan, "int8") as runner:

        def intrude(stream: int) -> tuple[int]:
            with pytest.raises(BackendError) as caught:
                runner.infer(batch())
            told.append(str(caught.value))
            return (0,)

        def synchronize(self: Any, stream: int) -> tuple[int]:
            thread = threading.Thread(target=intrude, args=(stream,))
            thread.start()
            thread.join()
            return (0,)

        monkeypatch.setattr(type(fake.cuda), "cudaStreamSynchronize", synchronize)
        runner.infer(batch())
    assert told == ["this runner is busy in another thread; give each thread its own: runner.fork()"]


# Failures


def test_why_a_plan_is_refused_is_quoted(fake: types.SimpleNamespace, plan: Path) -> None:
    fake.engine = None
    with pytest.raises(
        EngineError, match=r"TensorRT 10\.13\.2\.6 cannot load .* on NVIDIA Fake; rebuild .*10\.1, this"
    ):
        TensorRTRunner(plan, "int8")
    assert nothing_left(fake)


def test_a_plan_without_outputs_is_refused(
    fake: types.SimpleNamespace, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(fake.engine), "num_io_tensors", 2)
    with pytest.raises(EngineError, match=r"has inputs .* and outputs \[\]; both are needed") as caught:
        TensorRTRunner(plan, "int8")
    assert nothing_left(fake), caught  # though the exception is still held


def test_a_plan_of_types_that_numpy_lacks_is_refused(
    fake: types.SimpleNamespace, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(self: Any, name: str) -> Any:
        trt = real("tensorrt_rtx")
        return trt.nptype(trt.bfloat16) if trt else np.dtype("a type of its own")

    monkeypatch.setattr(type(fake.engine), "get_tensor_dtype", lacks)
    with pytest.raises(
        EngineError, match=r"model\.plan has an input or output of a type that NumPy lacks \(\S"
    ) as caught:
        TensorRTRunner(plan, "int8")
    assert nothing_left(fake), caught


def test_why_a_batch_is_refused_is_quoted(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        fake.engine.refuse = "execute_async_v3"
        fake.log.errors += ["an old line", "Error Code 7: the shape is wrong"]
        with pytest.raises(
            BackendError, match=r"^TensorRT 10\.13\.2\.6: execute_async_v3 was refused: Error Code 7: the"
        ):
            runner.infer(batch())
        with pytest.raises(BackendError, match="execute_async_v3 was refused: no reason was logged"):
            runner.infer(batch())  # what was quoted once is not quoted again
        fake.engine.refuse = ""
        check(runner)  # the shape is bound again


def test_what_the_library_raises_is_a_backend_error(
    fake: types.SimpleNamespace, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: Any, how: Any) -> None:
        fake.log.errors.append("its last line")
        raise RuntimeError("of pybind11\n")

    explode.__name__ = "create_execution_context"
    monkeypatch.setattr(type(fake.engine), "create_execution_context", explode)
    with pytest.raises(BackendError, match="create_execution_context failed: of pybind11: its last line"):
        TensorRTRunner(plan, "int8")
    assert nothing_left(fake)


@pytest.mark.parametrize(
    ("step", "calls"),
    [("cudaStreamCreateWithFlags", 1), ("cudaEventCreate", 3), ("cudaMalloc", 4), ("cudaHostAlloc", 5)],
)
def test_a_failed_construction_leaks_nothing(fake: types.SimpleNamespace, plan: Path, step: str, calls: int) -> None:
    fake.engine.profiles = bucket_profiles((4, 16), 2, 8)
    fake.cuda.fail, fake.cuda.fail_from = step, calls
    with pytest.raises(BackendError, match=f"CUDA: {step} failed with cudaErrorMemoryAllocation: out of memory"):
        TensorRTRunner(plan, "int8")
    assert fake.cuda.calls.count(step) == calls + 1
    assert nothing_left(fake)


@pytest.mark.parametrize("step", ["create_execution_context", "set_optimization_profile_async"])
def test_a_refused_context_leaks_nothing(fake: types.SimpleNamespace, plan: Path, step: str) -> None:
    fake.engine.refuse = step
    with pytest.raises(BackendError, match=f"{step} was refused: no reason was logged") as caught:
        TensorRTRunner(plan, "int8")
    assert nothing_left(fake), caught  # though the exception is still held


def test_a_failed_fork_leaves_the_runner_whole(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        held = len(fake.cuda.memory)
        fake.cuda.fail = "cudaMalloc"
        with pytest.raises(BackendError, match="cudaMalloc failed"):
            runner.fork()
        fake.cuda.fail = ""
        assert len(fake.cuda.memory) == held
        check(runner)
    assert nothing_left(fake)


def test_many_loads_leave_nothing(fake: types.SimpleNamespace, plan: Path) -> None:
    """Of the device, nor of Python: blocks that q8trt allocated and holds after 25 loads and after another 25."""
    ours, held = tracemalloc.Filter(True, str(Path(q8trt.__file__).parent / "*")), []
    tracemalloc.start()
    for load in range(50):
        with TensorRTRunner(plan, "int8") as runner, runner.fork() as fork:
            for each in (runner, fork):
                check(each)
        assert nothing_left(fake)
        fake.cuda.calls.clear()
        fake.cuda.graphs.clear()
        fake.cuda.times.clear()
        fake.engine.runs.clear()
        fake.engine.made_with.clear()
        if load in (24, 49):
            gc.collect()
            snapshot = tracemalloc.take_snapshot().filter_traces([ours])
            held.append(sum(statistic.count for statistic in snapshot.statistics("filename")))
    tracemalloc.stop()
    assert held[1] - held[0] < 125  # the stand-ins keep one or two a load; a runner that stays is dozens


def test_closing_after_a_cuda_error_warns(
    fake: types.SimpleNamespace, plan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = TensorRTRunner(plan, "int8")
    fake.cuda.fail = "cudaFree"
    runner.close()
    assert "while closing: CUDA: cudaFree failed with cudaErrorMemoryAllocation" in caplog.text
    assert fake.cuda.handles == set()


def test_without_the_plan(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.plan does not exist; build the engine first"):
        TensorRTRunner(tmp_path / "gone.plan", "int8")


def test_host_code_is_allowed_only_when_asked(fake: types.SimpleNamespace, plan: Path) -> None:
    for allowed in (False, True):
        TensorRTRunner(plan, "int8", host_code=allowed).close()
        assert fake.host_code is allowed


# Imports

#: What training, export and other backends need, and an engine does not.
TRAINING = (
    "torch", "transformers", "modelopt", "datasets", "accelerate", "scipy", "sklearn", "pandas", "onnxruntime", "onnx_ir",
    "matplotlib", "rich",
)  # fmt: skip


def test_running_an_engine_needs_neither_torch_nor_transformers(plan: Path) -> None:
    code = (
        "import sys; from tensorrt_fakes import install; install()\n"
        "import numpy as np; from q8trt.runtime import open_runner\n"
        "from q8trt.runtime.tensorrt.runner import TensorRTRunner\n"
        f"with TensorRTRunner({str(plan)!r}, 'int8') as runner:\n"
        "    batch = dict.fromkeys(runner.input_names, np.ones((2, 3), int))\n"
        "    for _ in range(3): runner.infer_timed(batch)\n"
        "    runner.layer_times(batch)\n"
        f"sys.exit(', '.join(set({TRAINING!r}) & set(sys.modules)) or None)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, timeout=PATIENCE, capture_output=True, text=True
    )
    assert (answer.returncode, answer.stderr.strip()) == (0, "")


def test_cuda_python_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        BackendError, match=r"cuda-python is not usable .*: pip install tensorrt-rtx cuda-python nvidia-ml-py"
    ):
        cuda_runtime("tensorrt_rtx")


@pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA driver here")
def test_no_driver_is_one_clear_line(plan: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    caplog.set_level(logging.WARNING)
    with pytest.raises(BackendError, match=r"^no NVIDIA driver .*: run on ONNX Runtime instead .*`q8trt doctor`$"):
        TensorRTRunner(plan, "int8", "rtx")
    assert caplog.text == ""
