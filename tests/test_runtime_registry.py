"""Runtimes declare themselves: nobody else knows their names, and a new one needs no change elsewhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from waiting import PATIENCE

from q8trt.engine.manifest import ONNX_FILE, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.errors import ConfigError
from q8trt.inference.opening import choose
from q8trt.runtime import RUNTIMES, open_runner, registry
from q8trt.runtime.base import Availability, EngineRuntime, Runner, RunOptions
from q8trt.runtime.onnxruntime import ONNX_RUNTIME

PACKAGE = Path(registry.__file__).parents[1]
MANIFEST = Manifest(
    task=TaskInfo("STS-B", [], True, True, "pearson"),
    model=ModelInfo("tiny", "bert", 1, 512, 0, 128),
    precision="fp32",
    recipe=None,
    inputs=["input_ids", "attention_mask"],
    opset=20,
    profiles=[],
    backend=None,
)


class StubRunner(Runner):
    device, precision, input_names = "cpu", "fp32", ("input_ids", "attention_mask")

    def __init__(self, runtime: EngineRuntime) -> None:
        self.runtime = runtime

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.checked(arrays)["input_ids"].sum(axis=1, keepdims=True).astype(np.float32)


class StubRuntime(EngineRuntime):
    def availability(self) -> Availability:
        return Availability("1.0")

    def open(self, folder: Path, manifest: Manifest, options: RunOptions) -> Runner:
        return StubRunner(self)


STUB = StubRuntime("stub", "Stub Runtime", device="cpu", model_file=ONNX_FILE, aliases=("st",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine folder, where the registry also lists `STUB`."""
    (tmp_path / ONNX_FILE).write_bytes(b"onnx")
    write_manifest(tmp_path, MANIFEST)
    monkeypatch.setattr(registry, "RUNTIMES", (*RUNTIMES, STUB))
    return tmp_path


@pytest.mark.parametrize("name", ["stub", "STUB", "st"])
def test_a_registered_runtime_answers(folder: Path, name: str) -> None:
    with open_runner(folder, name) as runner:
        assert (runner.backend, runner.label) == ("stub", "Stub Runtime, CPU, fp32")
        batch = dict.fromkeys(runner.input_names, np.ones((2, 3), np.int32))
        np.testing.assert_array_equal(runner.infer(batch), [[3], [3]])
    assert choose(MANIFEST, "cpu", name) is STUB
    with pytest.raises(ConfigError, match='backend="stub" runs on the CPU; leave device out, or give device="cpu"'):
        choose(MANIFEST, "cuda", name)


def test_a_cpu_without_onnxruntime_takes_the_next_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert open_runner(folder).backend == "stub"
    assert choose(MANIFEST, "cpu", None) is STUB
    monkeypatch.setattr(registry, "RUNTIMES", RUNTIMES)
    assert choose(MANIFEST, "cpu", None) is ONNX_RUNTIME  # its error names the command that installs it


def test_availability_is_reason_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    state = ONNX_RUNTIME.availability()
    assert not state.usable
    assert "ONNX Runtime" in state.problem
    assert state.remedy == "pip install onnxruntime protobuf"


def test_an_unknown_name_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown backend 'stup'; choose .*tensorrt_rtx \(or rtx\), .*, stub \(or st\) \(did you mean 'stub'",
    ):
        open_runner(folder, "stup")


def test_names_and_aliases_are_different() -> None:
    names = [name for runtime in RUNTIMES for name in (runtime.name, *runtime.aliases)]
    assert len(set(names)) == len(names)


def test_the_registry_imports_no_runtime() -> None:
    code = (
        "import sys, q8trt.runtime.registry\n"
        "heavy = {'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'torch', 'transformers', 'onnx', 'google.protobuf', 'cuda'}\n"
        "print(heavy & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.name)
def test_nobody_else_knows_a_runtime_by_name(runtime: EngineRuntime) -> None:
    """Except the seam that imports TensorRT's packages, and the names of packages to install and to list."""
    room = Path(sys.modules[type(runtime).__module__].__file__ or "").parent
    exports = PACKAGE / "runtime" / "__init__.py"  # modules by name
    seams = {PACKAGE / "engine" / "backend.py", PACKAGE / "hardware" / "packages.py", exports}
    sources = [path for path in PACKAGE.rglob("*.py") if room not in path.parents and path not in seams]
    assert len(sources) > 200
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Constant) and node.value == runtime.name), f"{path}:{node.lineno}"
