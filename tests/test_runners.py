import json
import logging
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE

from q8trt.engine import preflight
from q8trt.engine.backend import Backend
from q8trt.engine.manifest import BackendInfo, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.errors import BackendError, ConfigError, DataError, EngineError
from q8trt.evaluation.parity.probed import module_outputs
from q8trt.hardware.gpu import Gpu
from q8trt.quantization.precision import Precision
from q8trt.runtime import RunOptions, open_runner
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner, read_trace
from q8trt.runtime.opening import _log_once
from q8trt.runtime.tensorrt import runner as tensorrt_runner
from q8trt.runtime.timing.layers import median_times
from q8trt.runtime.torch_runner import TorchRunner

pytest.importorskip("onnx", reason="onnx is not installed")
from engine_fixtures import SMALL, TABLE, onnx, tiny_logits, tiny_onnx

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


def test_onnxruntime_times_its_nodes(ort: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with OnnxRuntimeRunner(model, "int8", threads=1) as runner:
        before = runner.infer(arrays := batch())
        found = runner.layer_times(arrays, iterations=3)
        names = [each.name for each in found]
        assert len(set(names)) == len(names)
        assert all(each.ms > 0 for each in found)
        assert "matmul" in names
        np.testing.assert_array_equal(runner.infer(arrays), before)
        with pytest.raises(DataError, match="missing from the batch"):
            runner.layer_times({})
    assert list(tmp_path.glob("*trace*")) == []  # where the profiler would write by itself
    with pytest.raises(BackendError, match="is closed"):
        runner.layer_times(arrays)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_hundred_loads_on_onnxruntime_take_no_memory(ort: Any, model: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    held = []
    for _ in range(100):
        with OnnxRuntimeRunner(model, "int8", threads=1) as runner:
            runner.infer(batch())
        held.append(resident())
    assert held[-1] - held[19] < 4 * 2**20  # a session of this model takes 50 KiB and more


def test_typical_times_of_layers() -> None:
    # Three batches, the first of which does not count; "b" is the name of two layers.
    found = median_times({"a": [9.0, 1.0, 2.0], "b": [9.0, 9.0, 1.0, 2.0, 3.0, 4.0], "once": [5.0]}, 3, "it")
    assert [(each.name, each.ms) for each in found] == [("a", 1.5), ("b", 5.0), ("once", 5.0)]
    with pytest.raises(BackendError, match="it reported no layer"):
        median_times({}, 3, "it")


def test_a_trace_is_read(tmp_path: Path) -> None:
    events = [
        {"cat": "Session", "name": "model_run", "dur": 99},
        {"cat": "Node", "name": "gemm_fence_before", "dur": 1},
        {"cat": "Node", "name": "gemm_kernel_time", "dur": 1500},
        {"cat": "Node", "name": "gemm_kernel_time", "dur": 500},
    ]
    (tmp_path / "trace.json").write_text(json.dumps(events))
    assert read_trace(tmp_path / "trace.json") == {"gemm": [1.5, 0.5]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "3",
        "[3]",
        '[{"cat": "Node"}]',
        '[{"cat": "Node", "name": "a_kernel_time", "dur": "x"}]',
        "\x00",
    ],
)
def test_a_damaged_trace_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(BackendError, match="profile cannot be read: "):
        read_trace(tmp_path / "trace.json")


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, "3", '{"modules": {"a": ["t", 0]}, "factors": []}', '{"modules": {"a": 3}, "factors": [1]}'],
)
def test_damaged_factors_of_modules_are_one_line(text: str) -> None:
    import onnx_ir as ir

    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10, metadata_props={"modules": text})
    with pytest.raises(EngineError, match="'modules' of the ONNX file's metadata is damaged"):
        module_outputs(model)


def test_an_output_of_words_is_refused(tmp_path: Path) -> None:
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input_ids"], ["logits"], to=onnx.TensorProto.STRING)],
        "g",
        [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT32, ["b", "s"])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.STRING, ["b", "s"])],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
    runner = OnnxRuntimeRunner(tmp_path / "model.onnx", "fp32")
    with pytest.raises(EngineError, match="is not numeric"):
        runner.infer({"input_ids": np.ones((1, 2), np.int32)})


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
    with pytest.raises(BackendError, match=r"ONNX Runtime is not usable .*: pip install onnxruntime protobuf"):
        OnnxRuntimeRunner(model, "int8")


# torch


def torch_model() -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Tiny(torch.nn.Module):  # type: ignore[misc, name-defined]
        config = types.SimpleNamespace(type_vocab_size=1, model_type="bert")

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


# open_runner


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """An engine folder with a plan that TensorRT-RTX 1.7.1 built for SM 8.6 and 8.9."""
    (tmp_path / "model.plan").write_bytes(b"plan")
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


MANIFEST = Manifest(
    task=TaskInfo("STS-B", [], True, True, "pearson"),
    model=ModelInfo("tiny", "bert", 1, 512, 0, 128),
    precision=Precision.INT8,
    recipe=None,
    inputs=["input_ids", "attention_mask"],
    opset=20,
    profiles=[SMALL],
    backend=BackendInfo("tensorrt_rtx", "1.7.1.116", ["8.6", "8.9"]),
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine with an L40S and TensorRT-RTX 1.7.1, where opening a plan returns the arguments."""
    machine = types.SimpleNamespace(cards=[L40S], version="1.7.1.99")
    _log_once.cache_clear()

    def find(name: str, version_compatible: bool) -> Backend:
        sms = dict.fromkeys(("SM75", "SM86", "SM89", "SM120"))
        return Backend(
            name, types.SimpleNamespace(ComputeCapability=types.SimpleNamespace(__members__=sms)), machine.version
        )

    monkeypatch.setattr(preflight, "gpus", lambda: machine.cards)
    monkeypatch.setattr(preflight, "plan_runtime", find)
    monkeypatch.setattr(preflight, "_has_cuda_python", lambda: True)
    monkeypatch.setattr(tensorrt_runner, "TensorRTRunner", lambda *arguments, **named: (arguments, named))
    return machine


def opened(folder: Path, **named: Any) -> Any:
    return (folder / "model.plan", "int8", "tensorrt_rtx"), {"options": RunOptions(), "host_code": False} | named


@pytest.mark.parametrize("choice", [None, "auto", "tensorrt_rtx", "TensorRT-RTX"])
def test_the_plan_is_taken_where_it_fits(folder: Path, machine: types.SimpleNamespace, choice: str | None) -> None:
    assert open_runner(folder, choice) == opened(folder)
    options = RunOptions(cuda_graph=False)
    assert open_runner(folder, choice, [(4, 16)], options) == opened(folder, options=options)


def test_a_version_compatible_plan_may_bring_its_own_code(folder: Path, machine: types.SimpleNamespace) -> None:
    machine.version = "10.13.2.6"
    report = {"build": {"options": {"version_compatible": True}}}
    built = BackendInfo("tensorrt", "10.13.0.1", ["8.9"])
    write_manifest(folder, replace(MANIFEST, report=report, backend=built))
    arguments, named = open_runner(folder)
    assert (arguments[2], named["host_code"]) == ("tensorrt", True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cards": []}, "no NVIDIA driver or GPU was found; run on ONNX Runtime"),
        (
            {"version": "1.8.0.1"},
            r"built by version 1\.7\.1\.116, 1\.8\.0\.1 is installed, .*; rebuild it: `python build_",
        ),
        (
            {"cards": [replace(L40S, name="NVIDIA T4", sm="7.5")]},
            r"for compute capability 8\.6, 8\.9; NVIDIA T4 has 7\.5; rebuild it: `python build_engine.py --int8 .* --sm 7\.5`",
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
    caplog.set_level(logging.INFO, "q8trt.runtime")
    runner = open_runner(folder)
    assert runner.backend == "onnxruntime"
    assert runner.infer(batch()).shape == (3, 3)
    open_runner(folder)
    assert len(caplog.records) == 1  # said once, however many runners are opened
    assert "running on ONNX Runtime on the CPU: " in caplog.text
    assert "run on ONNX Runtime" not in caplog.text
    with pytest.raises(BackendError, match=rf"cannot run on TensorRT-RTX here: .*{reason}") as caught:
        open_runner(folder, "tensorrt_rtx")
    assert "\n" not in str(caught.value)


def test_explicit_choices(ort: Any, folder: Path, machine: types.SimpleNamespace) -> None:
    assert open_runner(folder, "onnxruntime").backend == "onnxruntime"
    with pytest.raises(BackendError, match=r"plan was built by TensorRT-RTX; rebuild it: `.* --backend tensorrt`"):
        open_runner(folder, "tensorrt")
    with pytest.raises(BackendError, match=r"here: the plan takes 1x1 to 4x16, best at 2x8, not 8x16; rebuild it"):
        open_runner(folder, "tensorrt_rtx", [(8, 16)])
    with pytest.raises(ConfigError, match=r"unknown backend 'onnxruntme'; .*\(did you mean 'onnxruntime'\?\)"):
        open_runner(folder, "onnxruntme")


def test_folders_that_lack_a_model(ort: Any, folder: Path, machine: types.SimpleNamespace) -> None:
    (folder / "model.onnx").unlink()
    write_manifest(folder, replace(MANIFEST, backend=None))
    with pytest.raises(BackendError, match=r"here: .* has no plan; rebuild it: `.* --backend tensorrt_rtx`"):
        open_runner(folder, "tensorrt_rtx")
    with pytest.raises(EngineError, match=r"has no model\.onnx to run on ONNX Runtime"):
        open_runner(folder)


@pytest.mark.parametrize("choice", [None, "onnxruntime", "tensorrt_rtx"])
def test_a_damaged_folder_is_refused(folder: Path, machine: types.SimpleNamespace, choice: str | None) -> None:
    (folder / "model.plan").write_bytes(b"pla")
    with pytest.raises(
        EngineError, match=r"model\.plan is 3 bytes, the manifest says 4: .*; rebuild it: `python build"
    ):
        open_runner(folder, choice)


# Imports


def test_an_engine_folder_runs_on_onnxruntime_without_torch_and_transformers(ort: Any, folder: Path) -> None:
    """Nor with what else training and export need: in a fresh process, where none of it can be imported."""
    code = (
        "import sys\n"
        f"for name in {TRAINING!r}: sys.modules[name] = None\n"
        "import numpy as np; from q8trt.runtime import open_runner\n"
        f"with open_runner({str(folder)!r}, 'onnxruntime') as runner:\n"
        "    batch = dict.fromkeys(runner.input_names, np.ones((2, 3), int))\n"
        "    assert runner.infer(batch).shape == (2, 3)\n"
        "    assert runner.layer_times(batch)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.strip()) == (0, "")


#: What an engine does not need.
TRAINING = (
    "torch", "transformers", "modelopt", "datasets", "accelerate", "scipy", "sklearn", "pandas", "onnx", "onnx_ir",
    "onnxscript", "matplotlib", "rich", "tensorrt", "tensorrt_rtx",
)  # fmt: skip
