import ast
import ctypes
import logging
import sys
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt import runners
from q8trt.engine.backend import Backend, find_backend
from q8trt.engine.build import BuildConfig, build_plan
from q8trt.engine.manifest import BackendInfo, Manifest, ModelInfo, TaskInfo, write_manifest
from q8trt.errors import BackendError, ConfigError, DataError, EngineError
from q8trt.gpu import Gpu, gpus
from q8trt.runners import open_runner, tensorrt_runner
from q8trt.runners.onnxruntime_runner import OnnxRuntimeRunner
from q8trt.runners.tensorrt_runner import CheckedCuda, TensorRTRunner, cuda_runtime
from q8trt.runners.torch_runner import TorchRunner

pytest.importorskip("onnx", reason="onnx is not installed")
from test_engine_build import SMALL, TABLE, tiny_logits, tiny_onnx

RANDOM = np.random.default_rng(1)
L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")


def batch(rows: int = 3, length: int = 5) -> dict[str, np.ndarray]:
    return {
        "input_ids": RANDOM.integers(0, len(TABLE), (rows, length)),
        "attention_mask": RANDOM.integers(0, 2, (rows, length)),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx(tmp_path / "model.onnx")


# ONNX Runtime


@pytest.fixture
def ort() -> Any:
    return pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_onnxruntime_equals_numpy(ort: Any, model: Path, kind: type) -> None:
    arrays = {name: array.astype(kind) for name, array in batch().items()}
    with OnnxRuntimeRunner(model, "int8", threads=1) as runner:
        logits = runner.infer(arrays | {"token_type_ids": arrays["input_ids"]})
        assert runner.label == "ONNX Runtime, CPU, int8"
        assert runner.input_names == ("input_ids", "attention_mask")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, tiny_logits(**arrays), rtol=1e-5, atol=1e-5)


def test_onnxruntime_feeds_int64_models_too(ort: Any, tmp_path: Path) -> None:
    arrays = batch()
    logits = OnnxRuntimeRunner(tiny_onnx(tmp_path / "m.onnx", ids=7), "int8").infer(arrays)
    np.testing.assert_allclose(logits, tiny_logits(**arrays), rtol=1e-5, atol=1e-5)


def test_onnxruntime_wants_integer_inputs(ort: Any, tmp_path: Path, model: Path) -> None:
    import onnx

    graph = onnx.load(model)
    graph.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(graph, tmp_path / "float.onnx")
    with pytest.raises(EngineError, match=r"float\.onnx: inputs must be int32 or int64, not 'tensor\(float\)'"):
        OnnxRuntimeRunner(tmp_path / "float.onnx", "int8")


def test_onnxruntime_names_a_missing_or_damaged_file(ort: Any, model: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.onnx does not exist"):
        OnnxRuntimeRunner(tmp_path / "gone.onnx", "int8")
    for keep in (0, 100):
        (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:keep])
        with pytest.raises(EngineError, match=r"cannot load .*cut\.onnx, which may be damaged: \S") as caught:
            OnnxRuntimeRunner(tmp_path / "cut.onnx", "int8")
        assert "\n" not in str(caught.value)


def test_onnxruntime_refusals(ort: Any, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = OnnxRuntimeRunner(model, "int8")
    with pytest.raises(DataError, match=r"\['attention_mask'\] missing from the batch"):
        runner.infer({"input_ids": np.ones((1, 2), int)})
    with pytest.raises(BackendError, match=r"ONNX Runtime refused the batch: \S"):
        runner.infer({name: array + len(TABLE) for name, array in batch().items()})
    assert capfd.readouterr().err == ""  # the exception says it; ONNX Runtime must not say it again
    runner.close()
    runner.close()
    with pytest.raises(BackendError, match="is closed"):
        runner.infer(batch())


def test_onnxruntime_without_the_provider(ort: Any, model: Path) -> None:
    with pytest.raises(BackendError, match=r"has no NoSuchProvider here; available: .*CPUExecutionProvider"):
        OnnxRuntimeRunner(model, "int8", providers=["NoSuchProvider"])


def test_onnxruntime_does_not_fall_back_in_silence(ort: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: real(path, options))
    with pytest.raises(BackendError, match="could not start CUDAExecutionProvider: CUDA or cuDNN libraries"):
        OnnxRuntimeRunner(model, "int8", providers=["CUDAExecutionProvider"])


def test_onnxruntime_absent(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r'ONNX Runtime is not usable .*: pip install "q8trt\[train\]"'):
        OnnxRuntimeRunner(model, "int8")


# torch


def torch_model() -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Tiny(torch.nn.Module):  # type: ignore[misc, name-defined]
        config = types.SimpleNamespace(type_vocab_size=1)

        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.from_numpy(TABLE))

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, labels: Any = None) -> Any:
            assert not self.training
            assert input_ids.dtype == torch.int64
            logits = (self.table(input_ids) * attention_mask[..., None]).mean(1)
            return types.SimpleNamespace(logits=logits.to(torch.bfloat16))

    return Tiny()


def test_torch_runner() -> None:
    arrays = {name: array.astype(np.int32) for name, array in batch().items()}
    with TorchRunner(torch_model().train(), "fp32") as runner:
        assert runner.input_names == ("input_ids", "attention_mask")  # one token type only: the tokenizer makes none
        assert runner.label == "torch, CPU, fp32"
        logits = runner.infer(arrays)
        with pytest.raises(BackendError, match="torch refused the batch: index out of range"):
            runner.infer({name: array + 100 for name, array in arrays.items()})
    assert logits.dtype == np.float32
    expected = (TABLE[arrays["input_ids"]] * arrays["attention_mask"][..., None]).mean(1)
    np.testing.assert_allclose(logits, expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(BackendError, match="is closed"):
        runner.infer(arrays)


def test_torch_without_the_device() -> None:
    with pytest.raises(BackendError, match="torch cannot use device 'nonsense'"):
        TorchRunner(torch_model(), "fp32", device="nonsense")


# TensorRT: the names it calls are checked against the real packages, its behaviour against stand-ins


def attributes(source: Path) -> dict[str, set[str]]:
    """For each owner (the last name before the dot) the attributes that `source` reads of it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            found.setdefault(owner.strip("_"), set()).add(node.attr)
    return found


def test_every_call_exists_in_tensorrt_rtx_and_cuda_python() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    used = attributes(Path(tensorrt_runner.__file__))
    owners = {"context": trt.IExecutionContext, "engine": trt.ICudaEngine, "trt": trt}
    for owner, real in owners.items():
        assert len(used[owner]) > 2
        assert [name for name in used[owner] if not hasattr(real, name)] == []
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")
    cuda = {name for name in used["cuda"] | used["runtime"] if name.startswith("cuda")}
    assert {"cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaGetErrorName"} <= cuda
    assert [name for name in cuda if not hasattr(cudart, name)] == []


@dataclass
class FakeCuda:
    """The CUDA runtime in host memory: what is allocated, copied and freed is real, and one call can be made to fail."""

    fail: str = ""
    memory: dict[int, Any] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "fail"):
            return lambda *arguments: (2, None)
        return object.__getattribute__(self, name)

    def cudaSetDevice(self, device: int) -> tuple[int]:
        return (0,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, types.SimpleNamespace(name=b"NVIDIA Fake\0\0")

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, pointer: int) -> tuple[int]:
        del self.memory[pointer]
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams.add(7)
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams.remove(stream)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        device = target if kind == 1 else source
        assert size <= len(self.memory[device])
        assert stream in self.streams
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaGetErrorName(self, code: int) -> tuple[int, bytes]:
        return 0, b"cudaErrorMemoryAllocation"

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, b"out of memory"


class FakeEngine:
    """Engine and execution context of `tiny_onnx`, in NumPy, over the addresses that it is given."""

    num_io_tensors = 3
    names = ("input_ids", "attention_mask", "logits")
    refuse = False

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.address: dict[str, int] = {}

    def create_execution_context(self) -> "FakeEngine":
        return self

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name == "logits" else "input"

    def get_tensor_dtype(self, name: str) -> Any:
        return np.float32 if name == "logits" else np.int32

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, int]]:
        return [SMALL.min, SMALL.opt, SMALL.max]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shapes["input_ids"][0], 3) if name == "logits" else self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def view(self, name: str, kind: Any) -> np.ndarray:
        shape = self.get_tensor_shape(name)
        block = (ctypes.c_char * (4 * int(np.prod(shape)))).from_address(self.address[name])
        return np.frombuffer(block, kind).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        if not self.refuse:
            inputs = {name: self.view(name, np.int32) for name in self.names[:2]}
            self.view("logits", np.float32)[:] = tiny_logits(**inputs)
        return not self.refuse


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """TensorRT and CUDA stand-ins in place of the real packages."""
    fake = types.SimpleNamespace(cuda=FakeCuda(), engine=FakeEngine(), log=types.SimpleNamespace(errors=[]))

    def deserialize(plan: bytes) -> Any:
        if fake.engine is None:
            fake.log.errors.append("the plan is of version 10.1, this is 10.13")
        return fake.engine

    trt = types.ModuleType("tensorrt")
    vars(trt).update(
        TensorIOMode=types.SimpleNamespace(INPUT="input"),
        nptype=lambda kind: kind,
        Runtime=lambda log: types.SimpleNamespace(deserialize_cuda_engine=deserialize),
    )
    monkeypatch.setattr(Backend, "logger", lambda self: fake.log)
    monkeypatch.setattr(tensorrt_runner, "find_backend", lambda name: Backend("tensorrt", trt, "10.13.2.6"))
    monkeypatch.setattr(tensorrt_runner, "cuda_runtime", lambda name: CheckedCuda(fake.cuda))
    return fake


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    return path


def test_tensorrt_runs_batches_and_frees_everything(fake: types.SimpleNamespace, plan: Path) -> None:
    runner = TensorRTRunner(plan, "int8")
    assert runner.label == "TensorRT, NVIDIA Fake, int8"
    assert runner.input_names == ("input_ids", "attention_mask")
    assert runner.shapes == SMALL
    assert sorted(map(len, fake.cuda.memory.values())) == [4 * 3 * 4, 4 * 16 * 4, 4 * 16 * 4]
    for rows, length in ((1, 1), (4, 16), (2, 3)):
        arrays = batch(rows, length)
        transposed = {name: np.asfortranarray(array) for name, array in arrays.items()}
        np.testing.assert_array_equal(runner.infer(transposed), tiny_logits(**arrays))
    runner.close()
    runner.close()
    assert (fake.cuda.memory, fake.cuda.streams) == ({}, set())
    with pytest.raises(BackendError, match="runner is closed"):
        runner.infer(batch())


def test_tensorrt_states_the_profile(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner, pytest.raises(DataError) as caught:
        runner.infer(batch(5, 16))
    assert "shape (5, 16); the plan takes (batch, sequence) from 1x1 to 4x16, best at 2x8" in str(caught.value)


def test_tensorrt_quotes_why_a_plan_is_refused(fake: types.SimpleNamespace, plan: Path) -> None:
    fake.engine = None
    with pytest.raises(
        EngineError, match=r"TensorRT 10\.13\.2\.6 cannot load .* on NVIDIA Fake; rebuild .*10\.1, this"
    ):
        TensorRTRunner(plan, "int8")


def test_tensorrt_quotes_why_a_batch_is_refused(fake: types.SimpleNamespace, plan: Path) -> None:
    with TensorRTRunner(plan, "int8") as runner:
        fake.engine.refuse = True
        with pytest.raises(BackendError, match="execute_async_v3 was refused: no reason was logged"):
            runner.infer(batch())


def test_a_failed_allocation_frees_the_rest(fake: types.SimpleNamespace, plan: Path) -> None:
    fake.cuda.fail = "cudaMalloc"
    message = "CUDA: cudaMalloc failed with cudaErrorMemoryAllocation: out of memory"
    with pytest.raises(BackendError, match=message):
        TensorRTRunner(plan, "int8")
    assert fake.cuda.streams == set()


def test_closing_after_a_cuda_error_warns(
    fake: types.SimpleNamespace, plan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = TensorRTRunner(plan, "int8")
    fake.cuda.fail = "cudaFree"
    runner.close()
    assert "while closing: CUDA: cudaFree failed with cudaErrorMemoryAllocation" in caplog.text
    assert fake.cuda.streams == set()


def test_tensorrt_without_the_plan(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.plan does not exist; build the engine first"):
        TensorRTRunner(tmp_path / "gone.plan", "int8")


def test_cuda_python_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r'cuda-python is not usable .*: pip install "q8trt\[rtx\]"'):
        cuda_runtime("tensorrt_rtx")


@pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA driver here")
def test_no_driver_is_one_clear_line(plan: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    with pytest.raises(BackendError, match=r"^no NVIDIA driver .*: run on ONNX Runtime instead .*`q8trt doctor`$"):
        TensorRTRunner(plan, "int8", "rtx")


@pytest.mark.gpu
def test_tensorrt_equals_onnxruntime(ort: Any, model: Path, tmp_path: Path) -> None:
    name = find_backend().name
    build_plan(model, tmp_path / "model.plan", BuildConfig(name, SMALL))
    with TensorRTRunner(tmp_path / "model.plan", "int8", name) as runner:
        for rows, length in ((1, 1), (4, 16), (2, 3)):
            arrays = batch(rows, length)
            expected = OnnxRuntimeRunner(model, "int8").infer(arrays)
            np.testing.assert_allclose(runner.infer(arrays), expected, rtol=1e-3, atol=1e-3)


# open_runner


@pytest.fixture
def folder(tmp_path: Path, model: Path, plan: Path) -> Path:
    """An engine folder with a plan that TensorRT-RTX 1.7.1 built for SM 8.6 and 8.9."""
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


MANIFEST = Manifest(
    task=TaskInfo("STS-B", [], True, True, "pearson"),
    model=ModelInfo("tiny", "bert", 1, 512, 0, 128),
    precision="int8",
    recipe=None,
    inputs=["input_ids", "attention_mask"],
    opset=20,
    shapes=SMALL,
    backend=BackendInfo("tensorrt_rtx", "1.7.1.116", ["8.6", "8.9"]),
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine with an L40S and TensorRT-RTX 1.7.1, where opening a plan returns the arguments."""
    machine = types.SimpleNamespace(cards=[L40S], version="1.7.1.99")
    runners._say_once.cache_clear()
    monkeypatch.setattr(runners, "gpus", lambda: machine.cards)
    monkeypatch.setattr(runners, "find_backend", lambda name: Backend(name, types.ModuleType(name), machine.version))
    monkeypatch.setattr(tensorrt_runner, "TensorRTRunner", lambda *arguments: arguments)
    return machine


@pytest.mark.parametrize("choice", [None, "auto", "tensorrt_rtx", "TensorRT-RTX"])
def test_the_plan_is_taken_where_it_fits(folder: Path, machine: types.SimpleNamespace, choice: str | None) -> None:
    assert open_runner(folder, choice) == (folder / "model.plan", "int8", "tensorrt_rtx")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cards": []}, "no NVIDIA driver or GPU was found"),
        ({"version": "1.8.0.1"}, r"built by version 1\.7\.1\.116, 1\.8\.0\.1 is installed; rebuild the plan"),
        (
            {"cards": [replace(L40S, name="NVIDIA T4", sm="7.5")]},
            r"for compute capability 8\.6, 8\.9; NVIDIA T4 has 7\.5",
        ),
    ],
)
def test_else_onnxruntime_and_why(
    ort: Any,
    folder: Path,
    machine: types.SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    reason: str,
) -> None:
    vars(machine).update(change)
    caplog.set_level(logging.INFO, "q8trt.runners")
    runner = open_runner(folder)
    assert runner.backend == "onnxruntime"
    assert runner.infer(batch()).shape == (3, 3)
    open_runner(folder)
    assert len(caplog.records) == 1  # said once, however many runners are opened
    assert "running on ONNX Runtime on the CPU: " in caplog.text
    with pytest.raises(BackendError, match=rf"cannot run on TensorRT-RTX here: .*{reason}"):
        open_runner(folder, "tensorrt_rtx")


def test_rtx_covers_architectures_newer_than_it_names(folder: Path, machine: types.SimpleNamespace) -> None:
    machine.cards = [replace(L40S, sm="12.0")]
    assert open_runner(folder) == (folder / "model.plan", "int8", "tensorrt_rtx")


def test_explicit_choices(ort: Any, folder: Path, machine: types.SimpleNamespace) -> None:
    assert open_runner(folder, "onnxruntime").backend == "onnxruntime"
    with pytest.raises(BackendError, match=r"plan was built by TensorRT-RTX; rebuild it with --backend tensorrt$"):
        open_runner(folder, "tensorrt")
    with pytest.raises(ConfigError, match=r"unknown backend 'onnxruntme'; .*\(did you mean 'onnxruntime'\?\)"):
        open_runner(folder, "onnxruntme")


def test_an_absent_backend_is_the_reason(ort: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise BackendError("TensorRT-RTX is not installed: pip install it")

    monkeypatch.setattr(runners, "find_backend", absent)
    assert open_runner(folder).backend == "onnxruntime"
    with pytest.raises(BackendError, match="here: TensorRT-RTX is not installed: pip install it"):
        open_runner(folder, "tensorrt_rtx")


def test_folders_that_lack_a_model(ort: Any, folder: Path, machine: types.SimpleNamespace) -> None:
    (folder / "model.onnx").unlink()
    write_manifest(folder, replace(MANIFEST, backend=None))
    with pytest.raises(BackendError, match="here: it has no plan"):
        open_runner(folder, "tensorrt_rtx")
    with pytest.raises(EngineError, match=r"has no model\.onnx to run on ONNX Runtime"):
        open_runner(folder)


def test_a_damaged_folder_is_refused(folder: Path) -> None:
    (folder / "model.plan").write_bytes(b"pla")
    with pytest.raises(EngineError, match=r"model\.plan is 3 bytes, the manifest says 4"):
        open_runner(folder)
