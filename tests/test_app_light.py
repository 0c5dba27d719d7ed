"""An app's machine has numpy, tokenizers and ONNX Runtime, and nothing of what training needs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("modelopt", reason="ModelOpt is not installed")
from app_fixtures import ITEMS, REGRESSION, engine_folder

from q8trt import Engine
from q8trt.console.progress import progress

ABSENT = ("torch", "transformers", "onnx", "scipy", "sklearn", "yaml", "rich", "datasets", "modelopt")
CODE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import q8trt.runtime.tensorrt.runner
from q8trt import Engine
with Engine.load(FOLDER, device="cpu") as engine:
    answers = engine.predict(ITEMS)
    logits = engine.run({name: [[2, 9, 3]] if name == "input_ids" else [[1, 1, 1]] for name in engine.manifest.inputs})
modules = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps({"answers": answers, "logits": logits.tolist(), "modules": sorted(modules)}))
"""


def test_an_int8_engine_answers_the_same_with_nothing_else(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engine", REGRESSION, precision="int8")
    head = f"ABSENT = {ABSENT!r}\nFOLDER = {str(folder)!r}\nITEMS = {ITEMS['regression']!r}\n"
    done = subprocess.run([sys.executable, "-c", head + CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with Engine.load(folder, device="cpu") as engine:
        assert found["answers"] == engine.predict(ITEMS["regression"])
    assert {"numpy", "onnxruntime", "tokenizers", "q8trt", "google"} <= set(found["modules"])
    assert not set(found["modules"]) & {*ABSENT, "huggingface_hub", "pandas", "matplotlib"}


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import q8trt, sys; print({'numpy', 'tokenizers', 'onnxruntime', 'q8trt.inference'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_package_requires_three_small_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [each.partition(">=")[0] for each in project["dependencies"]] == ["msgspec", "numpy", "tokenizers"]
    extras = {
        name: {each.partition(">=")[0] for each in each} for name, each in project["optional-dependencies"].items()
    }
    assert extras["cpu"] == {"onnxruntime", "protobuf"}
    assert {"torch", "onnx", "onnxruntime", "protobuf", "pyyaml", "rich", "scipy", "scikit-learn"} <= extras["train"]


def test_progress_counts_where_there_is_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with progress("Predicting", 10) as advance:
        advance(4)
        advance(6)
    assert terminal.getvalue() == "\rPredicting 4/10\rPredicting 10/10\r\x1b[K"
