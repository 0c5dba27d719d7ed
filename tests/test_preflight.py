import json
import shlex
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from q8trt.cli.build_engine import PARSER
from q8trt.engine import preflight as module
from q8trt.engine.backend import Backend
from q8trt.engine.config import BuildConfig
from q8trt.engine.manifest import BackendInfo, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import load_manifest, write_manifest
from q8trt.engine.preflight import Problem, describe, preflight
from q8trt.engine.rebuild import rebuild_command
from q8trt.engine.shapes import ShapeProfile, bucket_profiles
from q8trt.errors import EngineError, MissingPackageError
from q8trt.hardware.gpu import Gpu
from q8trt.quantization.precision import Precision

L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")
T4 = Gpu("NVIDIA T4", "7.5", 15360, "570.86.15")
H100 = Gpu("NVIDIA H100", "9.0", 81559, "570.86.15")
RTX = BackendInfo("tensorrt_rtx", "1.7.1.116", ["8.0", "8.6", "8.9", "12.0"])
TRT = BackendInfo("tensorrt", "10.13.2.6", ["8.9"])
BUCKETS = list(bucket_profiles((32, 64), 16, 32))


def options(**given: Any) -> dict[str, Any]:
    """`Manifest.report` as `building` writes it: the build's options, read back from JSON."""
    config = asdict(BuildConfig(**given))
    told = {name: value for name, value in config.items() if name not in ("backend", "profiles")}
    return json.loads(json.dumps({"build": {"options": told}}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine folder of a run, on a machine with TensorRT-RTX 1.7.1 and TensorRT 10.13.2; see `change`."""
    folder = tmp_path / "a run" / "engine"
    folder.mkdir(parents=True)
    (folder.parent / "run.json").write_text("{}")
    (folder / "model.plan").write_bytes(b"plan")
    manifest = Manifest(
        TaskInfo("STS-B", [], True, True, "pearson"), ModelInfo("MiniLM", "bert", 1, 512, 0, 128), Precision.INT8, None,
        ["input_ids"], 20, "int8", BUCKETS, RTX, {}, options(),
    )  # fmt: skip
    write_manifest(folder, manifest)
    installed(monkeypatch, tensorrt="10.13.2.6", tensorrt_rtx="1.7.1.116")
    monkeypatch.setattr(module, "_has_cuda_python", lambda: True)
    return folder


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    sms = types.SimpleNamespace(__members__=dict.fromkeys(("SM75", "SM80", "SM86", "SM89", "SM120")))

    def find(name: str, version_compatible: bool) -> Any:
        if name not in versions:
            raise MissingPackageError(
                "TensorRT-RTX is not installed", "pip install tensorrt-rtx cuda-python nvidia-ml-py"
            )
        return Backend(name, types.SimpleNamespace(ComputeCapability=sms), versions[name])  # type: ignore[arg-type]

    monkeypatch.setattr(module, "plan_runtime", find)


def change(folder: Path, **given: Any) -> Manifest:
    return write_manifest(folder, replace(load_manifest(folder), **given))


def command(problem: Problem) -> list[str]:
    """The words of the command that `problem` gives; the command line takes them."""
    before, _, rest = problem.remedy.partition("`")
    assert before == "rebuild it: "
    words = shlex.split(rest.partition("`")[0])
    assert words[:2] == ["python", "build_engine.py"]
    PARSER.read(words[2:])
    return words


def value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_nothing_speaks_against_a_plan_that_fits(folder: Path) -> None:
    assert preflight(folder, cards=[L40S]) == []
    assert preflight(folder, "tensorrt_rtx", [(1, 1), (32, 64)], [L40S]) == []
    change(folder, backend=TRT)
    assert preflight(folder, cards=[L40S, T4]) == []


def test_no_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpus", lambda: [])
    assert list(map(str, preflight(folder))) == [
        "no NVIDIA driver or GPU was found; run on ONNX Runtime (device cpu, or backend onnxruntime), or see `q8trt doctor`"
    ]


def test_without_the_package_that_lists_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpus", lambda: [])
    monkeypatch.setattr(module, "installed_version", lambda package: None)
    monkeypatch.setattr(module, "driver_cuda", lambda: None)
    assert preflight(folder)[0].only_other_runtime
    monkeypatch.setattr(module, "driver_cuda", lambda: (13, 0))
    (problem,) = preflight(folder)
    assert str(problem) == "nvidia-ml-py, which lists GPUs, is not installed; pip install nvidia-ml-py"
    assert not problem.only_other_runtime


def test_an_absent_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert list(map(str, preflight(folder, cards=[L40S]))) == [
        "TensorRT-RTX is not installed; pip install tensorrt-rtx cuda-python nvidia-ml-py"
    ]


def test_absent_cuda_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_cuda_python", lambda: False)
    assert list(map(str, preflight(folder, cards=[L40S]))) == [
        "cuda-python is not installed; pip install tensorrt-rtx cuda-python nvidia-ml-py"
    ]


@pytest.mark.parametrize(
    ("built", "version_compatible", "found", "why"),
    [
        (RTX, False, "1.7.1.200", ""),
        (RTX, False, "1.8.0.1", "TensorRT-RTX plans load in the release that built them, no other"),
        (TRT, False, "10.13.2.9", ""),
        (TRT, False, "10.14.0.1", "TensorRT plans load in the version that built them, no other"),
        (TRT, True, "10.14.0.1", ""),
        (TRT, True, "10.13.0.1", "a version-compatible plan loads in its version and newer ones of the same major"),
        (TRT, True, "11.0.0.1", "a version-compatible plan loads in its version and newer ones of the same major"),
    ],
)
def test_versions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, built: BackendInfo, version_compatible: bool, found: str, why: str
) -> None:
    change(folder, backend=built, report=options(version_compatible=version_compatible))
    installed(monkeypatch, **{built.name: found})
    problems = preflight(folder, cards=[L40S])
    assert len(problems) == bool(why)
    for problem in problems:
        package = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}[built.name]
        start = f"its plan was built by version {built.version}, {found} is installed, and {why}"
        assert problem.cause.startswith(start)
        assert problem.cause.endswith(f"(pip install {package}=={built.version})")
        assert ("--version_compatible" in command(problem)) is version_compatible


def test_rtx_and_gpus(folder: Path) -> None:
    assert preflight(folder, cards=[replace(L40S, sm="12.1")]) == []  # newer than all it names
    (problem,) = preflight(folder, cards=[T4])
    assert problem.cause == "its plan is for compute capability 8.0, 8.6, 8.9, 12.0; NVIDIA T4 has 7.5"
    assert value(command(problem), "--sm") == "7.5"
    (problem,) = preflight(folder, cards=[H100])
    assert str(problem) == (
        "its plan is for compute capability 8.0, 8.6, 8.9, 12.0; NVIDIA H100 has 9.0, for which TensorRT-RTX cannot "
        "build; use TensorRT there (pip install tensorrt cuda-python nvidia-ml-py), or ONNX Runtime on the CPU "
        "(device cpu, or backend onnxruntime)"
    )


def test_rtx_asked_for_some_covers_no_newer_gpu(folder: Path) -> None:
    """On an H100 a plan for 8.9 alone was refused with "Supported compute capabilities: 8.9"."""
    change(folder, backend=replace(RTX, sm_targets=["8.9"]), report=options(sm=("8.9",)))
    (problem,) = preflight(folder, cards=[H100])
    assert problem.cause.endswith(
        "is for compute capability 8.9; NVIDIA H100 has 9.0, for which TensorRT-RTX cannot build"
    )
    (problem,) = preflight(folder, cards=[replace(L40S, sm="13.0")])
    assert "--sm" not in command(problem)  # without it, plans cover newer ones


@pytest.mark.parametrize(("asked", "card", "sms"), [(("8.6", "12.0"), L40S, "8.6,8.9,12.0"), (("8.6",), T4, "7.5")])
def test_rtx_asked_for_other_gpus(folder: Path, asked: tuple[str, ...], card: Gpu, sms: str) -> None:
    change(folder, backend=replace(RTX, sm_targets=list(asked)), report=options(sm=asked))
    (problem,) = preflight(folder, cards=[card])
    assert value(command(problem), "--sm") == sms


@pytest.mark.parametrize(
    ("level", "card", "fits"),
    [("none", H100, False), ("ampere+", H100, True), ("ampere+", T4, False), ("same_compute_capability", H100, False)],
)
def test_tensorrt_and_gpus(folder: Path, level: str, card: Gpu, fits: bool) -> None:
    change(folder, backend=TRT, report=options(hardware_compatibility_level=level))
    problems = preflight(folder, cards=[card])
    assert (problems == []) is fits
    for problem in problems:
        assert problem.cause == f"its plan is for compute capability 8.9; {card.name} has {card.sm}"
        assert value(command(problem), "--hardware_compatibility_level") == (None if level == "none" else level)
        assert "--sm" not in command(problem)


def test_files(folder: Path) -> None:
    assert preflight(folder, cards=[L40S]) == []
    (folder / "model.plan").write_bytes(b"nalp")
    (problem,) = preflight(folder, cards=[L40S])
    assert "model.plan has SHA-256 " in problem.cause
    assert problem.cause.endswith("…: it was changed or replaced")
    assert preflight(folder, cards=[L40S], verify=False) == []
    (folder / "model.plan").write_bytes(b"pla")
    (problem,) = preflight(folder, cards=[L40S])
    assert problem.cause.endswith("model.plan is 3 bytes, the manifest says 4: it was changed or replaced")
    (folder / "model.plan").unlink()
    (problem,) = preflight(folder, cards=[L40S])
    assert problem.cause.endswith("model.plan is missing, but the manifest lists it")
    command(problem)
    with pytest.raises(EngineError, match="does not exist"):
        preflight(folder / "nowhere")


def test_shapes_and_buckets(folder: Path) -> None:
    (problem,) = preflight(folder, shapes=[(1, 1), (64, 32), (8, 128)], cards=[L40S])
    assert problem.cause == "the plan takes 1x1 to 32x32, best at 16x32; 1x33 to 32x64, best at 16x64, not 64x32, 8x128"
    words = command(problem)
    assert [value(words, f"--{name}") for name in ("buckets", "opt_batch", "max_batch")] == ["32,64,128", "16", "64"]
    (problem,) = preflight(folder, shapes=[(1, 513)], cards=[L40S])
    assert problem.cause.endswith("not 1x513, and the model has 512 positions")
    assert problem.remedy == "use sequences of 512 or less"


def test_shapes_of_a_single_profile(folder: Path) -> None:
    change(folder, profiles=[ShapeProfile((2, 8), (4, 16), (8, 32))])
    (problem,) = preflight(folder, shapes=[(1, 32), (16, 8)], cards=[L40S])
    words = command(problem)
    assert [value(words, f"--{name}_shapes") for name in ("min", "opt", "max")] == ["1x8", "4x16", "16x32"]


def test_the_command_repeats_what_the_plan_was_built_with(folder: Path) -> None:
    report = options(workspace_mib=512, builder_optimization_level=5, timing_cache="my cache", version_compatible=True)
    manifest = change(folder, backend=TRT, precision=Precision.INT8_FP16, stage="ptq", report=report)
    assert rebuild_command(folder, manifest) == (
        f"`python build_engine.py --int8 --fp16 --checkpoint '{folder.parent}' --stage ptq --output_dir '{folder}' --overwrite "
        "--buckets 32,64 --opt_batch 16 --max_batch 32 --backend tensorrt --timing_cache 'my cache' --workspace_mib 512 "
        "--builder_optimization_level 5 --version_compatible`"
    )


def test_the_command_repeats_how_the_graph_was_exported(folder: Path) -> None:
    manifest = change(folder, report={"export": {"options": {"exporter": "dynamo", "fuse_qkv": True}}})
    assert rebuild_command(folder, manifest).endswith(" --fuse_qkv`")
    manifest = change(folder, report={"export": {"options": {"exporter": "dynamo", "fuse_qkv": False}}})
    assert rebuild_command(folder, manifest).endswith(" --no_fuse_qkv`"), "the run's target may fuse"
    assert "fuse_qkv" not in rebuild_command(folder, change(folder, report={}))


def test_the_command_of_a_folder_that_lies_in_no_run(folder: Path) -> None:
    (folder.parent / "run.json").unlink()
    text = rebuild_command(folder, load_manifest(folder))
    assert "--checkpoint RUN --stage int8" in text
    assert text.endswith("` (RUN: the run of MiniLM on STS-B that it was made from)")


def test_another_backend_is_wanted(folder: Path) -> None:
    change(folder, report=options(sm=("8.9",)))
    (problem,) = preflight(folder, "tensorrt", cards=[L40S])
    assert problem.cause == "its plan was built by TensorRT-RTX"
    words = command(problem)
    assert value(words, "--backend") == "tensorrt"
    assert "--sm" not in words  # TensorRT-RTX's own


def test_no_plan(folder: Path) -> None:
    change(folder, backend=None, profiles=[], report={})
    (problem,) = preflight(folder, cards=[L40S])
    assert problem.cause == f"{folder} has no plan"
    assert "--backend" not in command(problem)


def test_all_problems_are_told_and_the_one_command_mends_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tensorrt_rtx="1.8.0.1")
    (folder / "model.plan").write_bytes(b"pla")
    problems = preflight(folder, shapes=[(1, 128)], cards=[T4])
    assert len(problems) == 4
    words = {tuple(command(problem)) for problem in problems}
    assert len(words) == 1
    assert [value(list(*words), name) for name in ("--sm", "--buckets")] == ["7.5", "32,64,128"]
    line = describe(problems)
    assert line.count("build_engine.py") == 1
    assert all(problem.cause in line for problem in problems)
    assert "\n" not in line
