"""The choice among a recipe's candidates by the drift of answers from floating point."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from q8trt import api
from q8trt.quantization.calibration import Statistics, calibrate
from q8trt.quantization.choice import choose
from q8trt.quantization.drift import WORST, drift
from q8trt.quantization.insertion import insert_quantizers
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.trial import Trial, trial_lines
from q8trt.tasks.data import Features
from q8trt.tasks.glue import get_task
from q8trt.training.calibrating import HELD_OUT_ROWS, calibration_rows

CLIPPED = {"activations": {"calibrator": "percentile", "percentile": 60}}


def recipe_of(name: str, alternatives: list[Any], **changes: Any) -> Recipe:
    data = {**load_recipe(name).to_dict(), **changes}
    return Recipe.from_dict({**data, "alternatives": alternatives})


@torch.no_grad()
def answers(model: Any, batches: list[Any]) -> torch.Tensor:
    return torch.cat([model(**batch).logits for batch in batches])


@pytest.fixture
def batches(tiny_batch: Callable[..., Any]) -> tuple[list[Any], list[Any]]:
    """Rows to calibrate on, and others to compare on."""
    return [tiny_batch(seed=seed) for seed in range(4)], [tiny_batch(seed=seed) for seed in (10, 11)]


@pytest.mark.parametrize("name", ["full", "gpu", "linear"])
def test_the_least_drift_wins_and_the_model_is_as_calibrated_by_it_alone(
    name: str, tiny_model: Callable[..., Any], batches: tuple[list[Any], list[Any]]
) -> None:
    """Also to the bit: smoothing by other candidates before leaves nothing behind."""
    rows, held_out = batches
    recipe = load_recipe(name)
    model = tiny_model()
    reference = answers(model, held_out)
    insert_quantizers(model, recipe)
    steps: list[int] = []
    choice = choose(Statistics(model, recipe.candidates, rows), recipe.candidates, held_out, steps.append)
    drifts, alone = [], []
    for candidate in recipe.candidates:
        fresh = tiny_model()
        insert_quantizers(fresh, candidate)
        calibrate(fresh, candidate, rows)
        alone.append(fresh)
        difference = (answers(fresh, held_out) - reference).double().numpy()
        drifts.append(np.mean(difference**2) / np.var(reference.double().numpy()))
    np.testing.assert_allclose([trial.drift for trial in choice.trials], drifts, rtol=1e-3)
    best = int(np.argmin([trial.drift for trial in choice.trials]))
    assert choice.recipe == recipe.candidates[best]
    assert steps == [len(reference)] * len(recipe.candidates)
    assert model.state_dict().keys() == alone[best].state_dict().keys()
    for key, tensor in alone[best].state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("clipped_first", [False, True])
def test_ranges_that_clip_lose_in_any_order(
    clipped_first: bool, tiny_model: Callable[..., Any], batches: tuple[list[Any], list[Any]]
) -> None:
    rows, held_out = batches
    mse = {"activations": {"calibrator": "mse"}}
    data = {"name": "mine", "sites": {"gelu_out": None, "context": None}}
    first, second = (CLIPPED, mse) if clipped_first else (mse, CLIPPED)
    recipe = Recipe.from_dict({**data, **first, "alternatives": [second]})
    model = tiny_model()
    insert_quantizers(model, recipe)
    choice = choose(Statistics(model, recipe.candidates, rows), recipe.candidates, held_out)
    assert choice.recipe.sites["gelu_out"].calibrator == "mse"
    assert {trial.settings for trial in choice.trials} == {"mse", "percentile 60"}


def test_a_recipe_without_alternatives_is_obeyed(
    tiny_model: Callable[..., Any], batches: tuple[list[Any], list[Any]]
) -> None:
    recipe = Recipe.from_dict({"name": "mine", **CLIPPED, "sites": {"gelu_out": None}})
    model = tiny_model()
    insert_quantizers(model, recipe)
    choice = choose(Statistics(model, recipe.candidates, batches[0]), recipe.candidates, [])
    assert (choice.recipe, choice.trials) == (recipe, ())


def test_drift_is_free_of_scale_and_finite() -> None:
    reference = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 1.0]], dtype=torch.float64)
    off = reference + torch.tensor([[0.1, 0.0], [0.0, -0.2], [0.0, 0.0]])
    assert drift(reference, reference) == 0
    assert drift(off, reference) == pytest.approx(0.05 / (2 / 3 * 3 + 14 / 3))
    assert drift(off * 100, reference * 100) == pytest.approx(drift(off, reference))
    assert drift(reference.mean(0).expand(3, 2), reference) == pytest.approx(1)
    assert drift(off * torch.inf, reference) == drift(off * torch.nan, reference) == WORST
    assert drift(off, reference[:1].expand(3, 2)) == WORST


def test_rows_to_compare_on_are_no_calibration_rows() -> None:
    rows = Features([[5]] * 700, None, labels=None, task=get_task("STS-B"), split="train", source="rows")
    chosen, others = calibration_rows(rows, 512, 42)
    assert (len(set(chosen)), len(set(others))) == (512, HELD_OUT_ROWS)
    assert not set(chosen) & set(others)
    assert calibration_rows(rows, 512, 42) == (chosen, others)
    few, same = calibration_rows(rows, 10_000, 42)
    assert set(same) < set(few)


def test_the_table_marks_what_is_kept() -> None:
    assert trial_lines(()) == []
    head, first, second = trial_lines([Trial("mse", 0.02), Trial("percentile 99.99, smoothquant 0.5", 0.0125)])
    assert "held-out rows" in head
    assert first == "    0.0200  mse"
    assert second == "    0.0125  percentile 99.99, smoothquant 0.5  <- kept"


def test_a_run_records_what_was_tried_and_keeps_the_concrete_recipe(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sample": True, "task": "STS-B", "max_seq_length": 32, "calibration_samples": 16}
    run = api.calibrate(tiny_checkpoint, output_dir=tmp_path / "run", recipe=load_recipe("gpu"), **options)
    assert len(run.trials) == len(load_recipe("gpu").candidates)
    stored = json.loads((run.path / "ptq" / "quantization.json").read_text())["recipe"]
    assert "alternatives" not in stored
    best = min(range(len(run.trials)), key=lambda index: run.trials[index].drift)
    assert Recipe.from_dict(stored) == load_recipe("gpu").candidates[best]
    stage = run.stage("ptq")
    assert stage is not None
    assert stage.details["calibration_seconds"] > 0


def test_drifts_that_differ_are_told_apart() -> None:
    _, first, second = trial_lines([Trial("mse", 0.0123451), Trial("max", 0.0123459)])
    assert first.split()[0] == "0.012345"
    assert second.split()[0] == "0.012346"
