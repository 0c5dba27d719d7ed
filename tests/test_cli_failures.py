"""Damaged engines, recipes that do not match, packages that are missing, disks that are full: one line, exit code 2."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from q8trt.cli.main import run_command

pytestmark = pytest.mark.usefixtures("quick_export")

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)


@pytest.fixture(scope="module")
def engine(calibrated: Path) -> Path:
    """The engine of `calibrated`, in no run folder. Copy it before changing it."""
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs tensorrt_rtx")
    folder = calibrated.parent / "built" / "engine"
    options = ["--checkpoint", str(calibrated), "--output_dir", str(folder), "--backend", "tensorrt_rtx"]
    assert run_command("build-engine", options) == 0
    return folder


def _edit_recipe(checkpoint: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((checkpoint / "quantization.json").read_text())
    edit(record["recipe"]["sites"])
    del record["recipe"]["qat"]["start"]  # which has to have the same sites
    (checkpoint / "quantization.json").write_text(json.dumps(record))
    (checkpoint / "hashes.json").unlink()  # on purpose, as the message of a changed file has it


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda sites: sites.pop("gelu_out"), "has an amax that its recipe lacks: layer.0.gelu_out"),
        (lambda sites: sites.update(nose=sites["context"]), "nose"),
    ],
)
def test_recipe_that_does_not_match(
    edit: Callable[[Any], Any], says: str, calibrated: Path, tmp_path: Path, refused: Refused
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs tensorrt_rtx")
    shutil.copytree(calibrated, tmp_path / "run")
    _edit_recipe(tmp_path / "run/ptq", edit)
    assert says in refused("build-engine", "--checkpoint", "run")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--max_shapes", "32x128"], "the model has 64 positions"),
        (["--opt_shapes", "64x32", "--max_shapes", "32x32"], "min <= opt <= max; got 1, 64, 32"),
        (["--min_shapes", "1x64", "--max_shapes", "32x32"], "min <= opt <= max; got 64, 32, 32"),
        (["--min_shapes", "1x65"], "the model has 64 positions"),
        (["--buckets", "16,16"], "buckets must ascend, each longer than the one before; got 16,16"),
        (["--buckets", "16,2x"], "cannot read the buckets '16,2x': write sequence lengths in tokens, as 32,64,128"),
        (["--buckets", "32,128"], "max has sequence 128, but the model has 64 positions"),
        (["--buckets", "32", "--max_shapes", "8x16"], "--buckets excludes --max_shapes"),
        (["--max_batch", "8", "--opt_shapes", "8x16"], "--max_batch excludes --opt_shapes"),
        (["--opt_batch", "16", "--max_batch", "8"], "batch must be min <= opt <= max; got 1, 16, 8"),
        (["--sm", "9.0"], "has no SM 9.0; it builds for 7.5, 8.0, 8.6"),
        (["--sm", "sm89"], "cannot read --sm 'sm89': write compute capabilities, as 8.6,8.9,12.0"),
        (["--builder_optimization_level", "9"], "--builder_optimization_level 9, expected 0 to 5"),
        (["--version_compatible"], "cannot build version-compatible plans"),
        (["--hardware_compatibility_level", "ampere+"], "has no --hardware_compatibility_level ampere+"),
        (["--fp32", "--stage", "ptq"], "the ptq checkpoint cannot make an engine of precision fp32"),
        (["--stage", "int8"], "no finished int8 checkpoint"),
        (["--backend", "tensorflow"], "'tensorflow'"),
    ],
)
def test_build_refuses(argv: list[str], says: str, calibrated: Path, refused: Refused) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs tensorrt_rtx")
    options = ["--backend", "tensorrt_rtx", *argv]
    assert says in refused("build-engine", "--checkpoint", str(calibrated), "--output_dir", "engine", *options)


@pytest.mark.parametrize(("backend", "package"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")])
def test_backend_that_is_not_installed(
    backend: str, package: str, calibrated: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8trt.engine import backend as seam

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(seam, "importlib", SimpleNamespace(import_module=missing, util=importlib.util))
    line = refused("build-engine", "--checkpoint", str(calibrated), "--output_dir", "engine", "--backend", backend)
    assert f"pip install {package} cuda-python" in line


@pytest.mark.parametrize("name", ["model.plan", "model.onnx"])
@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_damaged_engine(name: str, damage: str, engine: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(engine, tmp_path / "engine")
    path = tmp_path / "engine" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-10] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    line = refused("benchmark", "--engine", "engine", "--no_accuracy")
    assert f"engine/{name}" in line
    assert "build_engine.py" in line


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "give --task and --data_dir"),
        (["--data_dir", "data"], "--data_dir needs --task"),
        (["--task", "MRPC", "--data_dir", "data"], "--task MRPC, but the engine was built for STS-B"),
        (["--no_accuracy", "--shapes", "1x33"], "--shapes 1x33 is outside the profile of engine"),
        (["--no_accuracy", "--parity"], "drop --no_accuracy"),
        (["--no_accuracy", "--backend", "tensorrt"], "engine cannot run on TensorRT here"),
        (["--task", "STS-B", "--data_dir", "data", "--max_seq_length", "32", "--parity"], "drop --parity"),
    ],
)
def test_benchmark_refuses(
    argv: list[str], says: str, engine: Path, data: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(engine, tmp_path / "engine")
    assert says in refused("benchmark", "--engine", "engine", *argv, writes="--parity" in argv)


def test_train_dependency_that_is_not_installed(
    refused: Refused, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8trt.training import execution

    def missing(*args: Any) -> None:
        raise ModuleNotFoundError("No module named 'modelopt'", name="modelopt.torch")

    monkeypatch.setattr(execution, "load_inputs", missing)
    line = refused("finetune", *options)
    assert line == "finetune: error: modelopt.torch is not installed: pip install nvidia-modelopt"


def _wrapped(error: OSError) -> Exception:
    """As torch reports it: another type, the cause in the chain."""
    wrapper = RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")
    wrapper.__context__ = error
    return wrapper


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_DISKS = [
    FULL,
    OSError(errno.EDQUOT, "quota"),
    _wrapped(FULL),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 216896 vs 216784"),
    RuntimeError("I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL_DISKS, ids=["ENOSPC", "quota", "wrapped", "torch", "safetensors"])
@pytest.mark.parametrize("where", ["run.json", "first checkpoint", "second checkpoint"])
def test_disk_full_while_training(
    where: str, error: Exception, refused: Refused, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8trt.training.stage import _Trainer

    saved = []
    save_model = _Trainer.save_model

    def full(self: Any, output_dir: str, **kwargs: Any) -> None:
        saved.append(output_dir)
        save_model(self, output_dir, **kwargs)
        if len(saved) == (1 if where == "first checkpoint" else 2):
            raise error

    if where == "run.json":
        monkeypatch.setattr(Path, "write_text", lambda *args, **kwargs: (_ for _ in ()).throw(error))
    else:
        monkeypatch.setattr(_Trainer, "save_model", full)
    steps = ["--max_steps", "3", "--eval_steps", "1", "--save_steps", "1", "--precision", "fp32", "--output_dir", "run"]
    line = refused("finetune", *options, *steps, writes=where != "run.json")
    assert "no space is left on the disk" in line
    assert [str(path) for path in Path("run/checkpoints/fp32").glob("*")] == saved[:-1]
    if where == "second checkpoint":
        monkeypatch.setattr(_Trainer, "save_model", save_model)
        assert run_command("finetune", ["--resume", "run"]) == 0
    else:
        assert not Path("run").exists()


def test_disk_full_while_building(
    refused: Refused, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs tensorrt_rtx")
    (tmp_path / "sitecustomize.py").write_text(  # the plan is written by another process
        "import pathlib\n"
        "def full(self, data): raise OSError(28, 'No space left on device', str(self))\n"
        "pathlib.Path.write_bytes = full\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    line = refused("build-engine", "--checkpoint", str(calibrated), "--output_dir", "engine")
    assert "no space left on" in line.lower()


def test_a_pickle_that_torch_refuses_is_one_line() -> None:
    import pickle

    from q8trt.cli.failures import explain

    line = explain(pickle.UnpicklingError("Weights only load failed.\nRe-running with weights_only=False ..."))
    assert line == "a file of torch has more than tensors and states; it is not read, because it could run code"
