"""Targets: the recipe, the precision and the graph that a device's engines get where no option says so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import q8trt
from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import load_recipe
from q8trt.quantization.target import Target
from q8trt.runs.config import CalibrationConfig, FinetuneConfig
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig

DATA = DataConfig("STS-B", sample=True)


def test_facts() -> None:
    assert [(each.value, each.recipe, each.int8, each.fuse_qkv) for each in Target] == [
        ("gpu", "gpu", Precision.INT8_FP16, True),
        ("cpu", "linear", Precision.INT8, False),
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
