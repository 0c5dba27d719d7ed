"""The runner on a real GPU: what stand-ins cannot show. Skipped without one."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt.engine.backend import find_backend
from q8trt.engine.build_process import build_plan
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import bucket_profiles
from q8trt.errors import DataError, EngineError
from q8trt.runtime import RunOptions
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.runtime.tensorrt.cuda import cuda_runtime
from q8trt.runtime.tensorrt.runner import TensorRTRunner

pytest.importorskip("onnx", reason="onnx is not installed")
from engine_fixtures import TABLE, tiny_onnx

pytestmark = pytest.mark.gpu
SHAPES = ((1, 1), (4, 16), (2, 3), (2, 3), (2, 3), (4, 9), (2, 3))
BASE = (32, 128)


def batch(rows: int, length: int, vocabulary: int = len(TABLE)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows * 1000 + length)
    mask = np.arange(length) < random.integers(1, length + 1, (rows, 1))
    ids = random.integers(0, vocabulary, (rows, length)) * mask
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny model and its plan of two buckets."""
    folder = tmp_path_factory.mktemp("tiny")
    model, plan = tiny_onnx(folder / "model.onnx"), folder / "model.plan"
    build_plan(model, plan, BuildConfig(find_backend().name, bucket_profiles((8, 16), 2, 4)))
    return model, plan


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> tuple[Path, Path]:
    """A BERT of 2 layers in FP32 and its plan, large enough that to compile it takes time."""
    from q8trt.export.onnx import export_onnx

    folder = tmp_path_factory.mktemp("bert")
    exported = export_onnx(
        tiny_model(max_position_embeddings=128), folder / "model.onnx", "fp32", ("input_ids", "attention_mask")
    )
    build_plan(exported.path, folder / "model.plan", BuildConfig(find_backend().name, bucket_profiles((128,), 16, 32)))
    return exported.path, folder / "model.plan"


def expected(model: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    with OnnxRuntimeRunner(model, "int8") as runner:
        return runner.infer(arrays)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_logits_equal_onnxruntime_s(built: tuple[Path, Path], cuda_graph: bool) -> None:
    model, plan = built
    with TensorRTRunner(plan, "int8", options=RunOptions(cuda_graph=cuda_graph, specialization="eager")) as runner:
        for shape in SHAPES:
            arrays = batch(*shape)
            np.testing.assert_allclose(runner.infer(arrays), expected(model, arrays), rtol=1e-3, atol=1e-3)


def test_bert_with_and_without_graph(bert: tuple[Path, Path]) -> None:
    model, plan = bert
    arrays = batch(8, 100, 50)
    logits = []
    for cuda_graph in (True, False):
        with TensorRTRunner(plan, "fp32", options=RunOptions(cuda_graph=cuda_graph)) as runner:
            answers = [runner.infer(arrays) for _ in range(4)]
            for answer in answers[1:]:
                np.testing.assert_allclose(answer, answers[0], rtol=1e-3, atol=1e-3)
            logits.append(answers[-1])
            timing = runner.infer_timed(arrays)
            assert 0 < timing.gpu_ms < timing.host_ms
            if runner.backend == "tensorrt":
                assert timing.cuda_graph is cuda_graph  # no quiet fall-back
    np.testing.assert_allclose(logits[0], expected(model, arrays), rtol=2e-2, atol=2e-2)  # TF32
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-3)


def test_layers_are_timed(bert: tuple[Path, Path]) -> None:
    with TensorRTRunner(bert[1], "fp32") as runner:
        before = runner.infer(batch(*BASE, 50))
        layers = runner.layer_times(batch(*BASE, 50), iterations=5)
        assert len({layer.name for layer in layers}) == len(layers) > 0
        assert 0 < sum(layer.ms for layer in layers) < 1000
        np.testing.assert_allclose(runner.infer(batch(*BASE, 50)), before, rtol=1e-3, atol=1e-3)


def test_torch_tensors_are_read_in_place(built: tuple[Path, Path]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    model, plan = built
    with TensorRTRunner(plan, "int8") as runner:
        for shape in SHAPES:
            arrays = batch(*shape)
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):  # not finished when infer is called: DLPack must order the two streams
                torch.cuda._sleep(10_000_000)
                given = {name: torch.from_numpy(array).cuda(non_blocking=True) for name, array in arrays.items()}
                logits = runner.infer(given)
            np.testing.assert_allclose(logits, expected(model, arrays), rtol=1e-3, atol=1e-3)
        with pytest.raises(DataError, match="input_ids is int64 on the GPU"):
            runner.infer({name: tensor.long() for name, tensor in given.items()})


def test_cuda_array_interface(built: tuple[Path, Path]) -> None:
    model, plan = built
    arrays, cuda = batch(2, 5), cuda_runtime(find_backend().name)
    with TensorRTRunner(plan, "int8") as runner, contextlib.ExitStack() as stack:
        given = {}
        for name, array in arrays.items():
            pointer = cuda.cudaMalloc(array.nbytes)
            stack.callback(cuda.cudaFree, pointer)
            cuda.cudaMemcpy(pointer, array.ctypes.data, array.nbytes, cuda.host_to_device)
            described = {
                "shape": array.shape,
                "typestr": "<i4",
                "data": (int(pointer), False),
                "version": 3,
                "stream": 1,
            }
            given[name] = type("Interface", (), {"shape": array.shape, "__cuda_array_interface__": described})()
        for _ in range(3):
            np.testing.assert_allclose(runner.infer(given), expected(model, arrays), rtol=1e-3, atol=1e-3)


def test_eight_threads(built: tuple[Path, Path]) -> None:
    model, plan = built
    arrays = [batch(1 + seed % 4, 1 + seed) for seed in range(16)]
    right = [expected(model, each) for each in arrays]
    with TensorRTRunner(plan, "int8") as runner, contextlib.ExitStack() as stack:

        def work(fork: TensorRTRunner) -> None:
            for number in range(200):
                index = number // 3 % 16  # thrice each, so that graphs are captured while other threads work
                np.testing.assert_allclose(fork.infer(arrays[index]), right[index], rtol=1e-3, atol=1e-3)

        forks = [stack.enter_context(runner.fork()) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, forks))


def test_a_hundred_loads_take_no_memory(built: tuple[Path, Path]) -> None:
    cuda, free = cuda_runtime(find_backend().name), []
    for _ in range(100):
        with TensorRTRunner(built[1], "int8") as runner, runner.fork() as fork:
            for _ in range(2):
                runner.infer(batch(2, 3))
                fork.infer(batch(2, 12))
        free.append(cuda.cudaMemGetInfo()[0])
    assert free[-1] >= free[9]  # the first loads may fill the driver's own pools


def test_the_second_start_is_quicker(bert: tuple[Path, Path], tmp_path: Path) -> None:
    if find_backend().name != "tensorrt_rtx":
        pytest.skip("only TensorRT-RTX compiles at run time")
    seconds, states = [], []
    for _ in range(2):
        started = time.perf_counter()
        options = RunOptions(runtime_cache=str(tmp_path), specialization="eager")
        with TensorRTRunner(bert[1], "fp32", options=options) as runner:
            runner.infer(batch(*BASE, 50))
            seconds.append(time.perf_counter() - started)
            states.append(runner.runtime_cache_state)
    assert states == ["new", "loaded"]
    assert seconds[1] < 0.7 * seconds[0]


def test_a_damaged_plan_is_one_clear_line(built: tuple[Path, Path], tmp_path: Path) -> None:
    plan = tmp_path / "cut.plan"
    plan.write_bytes(built[1].read_bytes()[:1000])
    with pytest.raises(EngineError, match=r"cannot load .*cut\.plan on NVIDIA .*: \S") as caught:
        TensorRTRunner(plan, "int8")
    assert "\n" not in str(caught.value)
