"""Targets: the recipe, the precision and the graph that a device's engines get where no option says so."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import q8trt
from q8trt.cli import build_engine
from q8trt.cli.main import run_command
from q8trt.deployment.engine_folder import default_folder
from q8trt.deployment.source import Source, find_source
from q8trt.errors import ConfigError
from q8trt.export.options import ExportOptions
from q8trt.hardware.gpu import Gpu
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import load_recipe
from q8trt.quantization.target import Target
from q8trt.runs.config import CalibrationConfig, FinetuneConfig
from q8trt.runs.run import Run, open_run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig

pytest_plugins = ("cli_fixtures",)
DATA = DataConfig("STS-B", sample=True)
Built = Callable[..., list[str]]


def test_facts() -> None:
    assert [(each.value, each.recipe, each.int8, each.fuse_qkv, each.baselines) for each in Target] == [
        ("gpu", "gpu", Precision.INT8_FP16, True, (Precision.FP32, Precision.FP16)),
        ("cpu", "linear", Precision.INT8, False, (Precision.FP32,)),
    ]


@pytest.mark.parametrize("target", Target)
def test_a_run_takes_the_recipe_of_its_target(target: Target) -> None:
    config = FinetuneConfig(DATA, TrainingConfig(), target=target)
    assert config.recipe == load_recipe(target.recipe)
    assert FinetuneConfig(DATA, TrainingConfig(), target=target, recipe=load_recipe("full")).recipe.name == "full"
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored["target"] == target.value
    assert FinetuneConfig.from_dict(stored) == config


def test_the_default_is_gpu() -> None:
    assert FinetuneConfig(DATA, TrainingConfig()).target is CalibrationConfig().target is Target.GPU


def test_a_name_is_a_target_and_others_are_refused() -> None:
    assert FinetuneConfig(DATA, TrainingConfig(), target="cpu").target is Target.CPU  # type: ignore[arg-type]
    message = r"^unknown --target 'cup' \(did you mean 'cpu'\?\); known: gpu, cpu$"
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(DATA, TrainingConfig(), target="cup")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        q8trt.calibrate(task="STS-B", target="cup")


def test_a_calibration_hands_its_target_on() -> None:
    calibration = CalibrationConfig(target=Target.CPU)
    older = FinetuneConfig(DATA, TrainingConfig(), target=Target.GPU)
    config = replace(older, **calibration.apply(load_recipe("attention")))
    assert (config.target, config.recipe.name) == (Target.CPU, "attention")


@pytest.mark.parametrize("recipe", ["linear", "full"])
def test_a_run_without_a_target_keeps_what_it_had(recipe: str) -> None:
    """Runs of earlier versions record no target: INT8 with FP32 elsewhere and no fused QKV, whatever the recipe."""
    config = FinetuneConfig(DATA, TrainingConfig(), recipe=load_recipe(recipe))
    stored = json.loads(json.dumps(config.to_dict()))
    del stored["target"]
    older = FinetuneConfig.from_dict(stored)
    assert (older.target, older.recipe) == (Target.CPU, load_recipe(recipe))
    assert (older.target.int8, older.target.fuse_qkv) == (Precision.INT8, False)


# Engines


@pytest.fixture
def run_of(calibrated: Path, tmp_path: Path) -> Callable[[str | None], Path]:
    """Makes a run with FP32 and PTQ checkpoints whose run.json has the target given, or none."""

    def make(target: str | None) -> Path:
        run = open_run(shutil.copytree(calibrated, tmp_path / "run"))
        config = {name: value for name, value in run.record.config.items() if name != "target"}
        run.write(replace(run.record, config=config | ({"target": target} if target else {})))
        return run.path

    return make


@pytest.mark.parametrize(
    ("of_run", "precision", "target", "expected", "folder"),
    [
        ("gpu", None, None, Precision.INT8_FP16, "engine-ptq"),
        ("cpu", None, None, Precision.INT8, "engine-ptq"),
        (None, None, None, Precision.INT8, "engine-ptq"),
        ("gpu", None, Target.CPU, Precision.INT8, "engine-ptq-fp32"),
        ("cpu", None, Target.GPU, Precision.INT8_FP16, "engine-ptq-fp16"),
        ("gpu", Precision.INT8, None, Precision.INT8, "engine-ptq-fp32"),
        ("cpu", Precision.INT8_FP16, None, Precision.INT8_FP16, "engine-ptq-fp16"),
        ("gpu", Precision.FP16, Target.CPU, Precision.FP16, "engine-fp16"),
    ],
)  # fmt: skip
def test_the_precision_of_an_engine_and_its_folder(
    of_run: str | None, precision: Precision | None, target: Target | None, expected: Precision, folder: str,
    run_of: Callable[[str | None], Path],
) -> None:  # fmt: skip
    """The name is that of the run's target, so that an engine for another one has a folder of its own."""
    source = find_source(precision, str(run_of(of_run)), "runs", target=target)
    assert source.precision is expected
    assert source.target is (target or Target(of_run or "cpu"))
    assert default_folder(source).name == folder


def test_a_flag_wins_over_the_target() -> None:
    assert [ExportOptions().for_target(each).fuse_qkv for each in Target] == [True, False]
    assert [ExportOptions(fuse_qkv=False).for_target(each).fuse_qkv for each in Target] == [False, False]
    assert [ExportOptions(fuse_qkv=True).for_target(each).fuse_qkv for each in Target] == [True, True]
    read = build_engine.PARSER.read
    assert [read(words).export.fuse_qkv for words in ([], ["--fuse_qkv"], ["--no_fuse_qkv"])] == [None, True, False]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    """Runs build_engine.py with a builder that only makes folders; returns what it builds, in order."""

    def run(*argv: str) -> list[str]:
        engines = []

        def build(source: Source, options: build_engine.Options, output_dir: str | None) -> Path:
            folder = Path(output_dir) if output_dir else default_folder(source)
            folder.mkdir(parents=True, exist_ok=True)
            engines.append(f"{folder.name}: {source.precision}, {source.target}")
            return folder

        monkeypatch.setattr(build_engine, "_build", build)
        assert run_command("build-engine", list(argv)) == 0
        return engines

    return run


@pytest.mark.parametrize(
    ("target", "words", "engines"),
    [
        ("gpu", "", ["engine-ptq: int8+fp16, gpu", "engine-fp32: fp32, gpu", "engine-fp16: fp16, gpu"]),
        ("cpu", "--int8", ["engine-ptq: int8, cpu", "engine-fp32: fp32, cpu"]),
        ("gpu", "--int8 --fp32", ["engine-ptq-fp32: int8, gpu", "engine-fp32: fp32, gpu", "engine-fp16: fp16, gpu"]),
        ("gpu", "--int8 --no_baseline", ["engine-ptq: int8+fp16, gpu"]),
        ("gpu", "--int8 --output_dir elsewhere", ["elsewhere: int8+fp16, gpu"]),
        ("gpu", "--int8 --target cpu", ["engine-ptq-fp32: int8, cpu", "engine-fp32: fp32, cpu"]),
        ("gpu", "--fp16", ["engine-fp16: fp16, gpu"]),
        ("cpu", "--fp32", ["engine-fp32: fp32, cpu"]),
    ],
)
def test_baselines_of_a_build(
    target: str, words: str, engines: list[str], run_of: Callable[[str | None], Path], built: Built,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = run_of(target)
    monkeypatch.chdir(run.parent)
    assert built("--checkpoint", "run", *words.split()) == engines
    first, *baselines = [engine.partition(":")[0] for engine in engines]
    assert benchmarked(capsys.readouterr().out) == [*baselines, first]


def benchmarked(out: str) -> list[str]:
    """The names of the engines in the last command of `out`."""
    words = shlex.split(out.splitlines()[-1])
    return [Path(word).name for option, word in pairwise(words) if option == "--engine"]


def test_baselines_that_are_there_stay(
    run_of: Callable[[str | None], Path], built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    run, engines = str(run_of("gpu")), ["engine-fp32", "engine-fp16", "engine-ptq"]
    built("--checkpoint", run)
    for option in ([], ["--no_baseline"]):
        assert built("--checkpoint", run, *option) == ["engine-ptq: int8+fp16, gpu"]
        assert benchmarked(capsys.readouterr().out) == engines


def test_an_unknown_target_in_python(run_of: Callable[[str | None], Path]) -> None:
    with pytest.raises(ConfigError, match=r"^unknown target 'tpu'; known: gpu, cpu$"):
        q8trt.build_engine(run_of("gpu"), target="tpu")


@pytest.mark.parametrize("cards", [[], [Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")]], ids=["no GPU", "a GPU"])
def test_the_demo_says_what_figures_without_a_gpu_are_worth(
    cards: list[Gpu], calibrated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finetune(**options: object) -> Run:
        assert "target" not in options, "the demo runs on the default one"
        return open_run(calibrated)

    monkeypatch.setattr("q8trt.api.finetune", finetune)
    monkeypatch.setattr("q8trt.cli.finetune.gpus", lambda: cards)
    assert run_command("finetune", ["--demo"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no GPU here: ")]
    assert len(lines) == (not cards)
    assert all("its figures are not TensorRT's" in line for line in lines)
