"""Sites that nothing rescues in INT8 stay in floating point, chosen by drift; all else stays in INT8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import APART, ARCHITECTURES, make_tokenizer

from q8trt import api
from q8trt.errors import ConfigError
from q8trt.export.onnx import export_onnx
from q8trt.lint import lint
from q8trt.models.checkpoints import load_quantized, save_checkpoint
from q8trt.quantization.calibration import Statistics
from q8trt.quantization.choice import Choice, choose
from q8trt.quantization.drift import all_answers, drift
from q8trt.quantization.float_sites import GAIN, leave_in_float, operations
from q8trt.quantization.float_sites import steps as steps_of
from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.recipe import FloatSites, Recipe, load_recipe
from q8trt.quantization.sites import encoder_sites
from q8trt.quantization.trial import InFloat, Trial, trial_lines

#: A channel of V whose range is beyond the others' by this factor. No recipe smooths what reads it.
CHANNEL, FACTOR = 5, 2.0**14
ATTENTION = tuple(f"layer.0.{name}" for name in ("bmm_q", "bmm_k", "softmax_out", "bmm_v"))
OUTPUT = ("layer.0.context", "layer.0.attention_output.weight")
BOUND = FloatSites(max=3, drift=0.02)


def planted(model: Any) -> Any:
    """Let one channel of V, and the context's, be massive, and the weight that reads it small: the same function in float."""
    with torch.no_grad():
        attention = model.base_model.encoder.layer[0].attention
        attention.self.value.weight[CHANNEL] *= FACTOR
        attention.self.value.bias[CHANNEL] *= FACTOR
        attention.output.dense.weight[:, CHANNEL] /= FACTOR
        attention.output.dense.weight *= 8.0  # so that attention counts
    return model


@pytest.fixture
def batches(tiny_batch: Callable[..., Any]) -> tuple[list[Any], list[Any]]:
    """Rows to calibrate on, and others to compare on."""
    return [tiny_batch(seed=seed) for seed in range(4)], [tiny_batch(seed=seed) for seed in range(10, 16)]


def chosen(model: Any, recipe: Recipe, batches: tuple[list[Any], list[Any]]) -> Choice:
    insert_quantizers(model, recipe)
    candidates = recipe.candidates
    return choose(Statistics(model, candidates, batches[0]), candidates, batches[1], measured=True)


@pytest.mark.parametrize("name", ["gpu", "full"])
def test_what_nothing_rescues_stays_in_float(
    name: str, tiny_model: Callable[..., Any], batches: tuple[list[Any], list[Any]]
) -> None:
    recipe, model = load_recipe(name), planted(tiny_model(num_labels=4))
    reference = all_answers(model, batches[1])
    choice = chosen(model, recipe, batches)
    assert min(trial.drift for trial in choice.trials) > 3 * BOUND.drift
    steps: list[int] = []
    left = leave_in_float(model, choice, BOUND, batches[1], steps.append)
    assert left.in_float
    assert set(left.in_float.operations) == {ATTENTION, OUTPUT}
    assert left.in_float.drift <= BOUND.drift
    assert len(operations(model)) + 2 < sum(steps) <= steps_of(model, BOUND)
    # The recipe alone, calibrated from the start, drifts as much, and carries quantizers elsewhere only.
    fresh = planted(tiny_model(num_labels=4))
    again = chosen(fresh, left.recipe, batches)
    assert again.trials[0].drift == pytest.approx(left.in_float.drift, rel=0.05)
    assert drift(all_answers(fresh, batches[1]), reference) == pytest.approx(again.trials[0].drift, rel=1e-3)
    assert set(model_quantizers(model)) - set(model_quantizers(fresh)) == {*ATTENTION, *OUTPUT}


def test_a_drift_within_the_bound_changes_nothing(
    tiny_model: Callable[..., Any], batches: tuple[list[Any], list[Any]]
) -> None:
    model = tiny_model(num_labels=4)
    choice = chosen(model, load_recipe("gpu"), batches)
    steps: list[int] = []
    assert leave_in_float(model, choice, BOUND, batches[1], steps.append) is choice
    assert steps == []


def test_an_operation_that_gains_nothing_stays_in_int8(
    tiny_model: Callable[..., Any], batches: tuple[list[Any], list[Any]]
) -> None:
    """A bound that cannot be kept takes what helps, and no more."""
    model = planted(tiny_model(num_labels=4))
    reference = all_answers(model, batches[1])
    choice = chosen(model, load_recipe("gpu"), batches)
    left = leave_in_float(model, choice, FloatSites(max=5, drift=0.0), batches[1]).in_float
    assert left
    assert set(left.operations[:2]) == {ATTENTION, OUTPUT}
    assert left.drift < 0.01 * min(trial.drift for trial in choice.trials)
    for operation in left.operations[2:]:  # each gains a tenth at least
        rest = [key for each in left.operations if each != operation for key in each]
        for key, quantizer in model_quantizers(model).items():
            (quantizer.disable if key in rest else quantizer.enable)()
        assert drift(all_answers(model, batches[1]), reference) > left.drift / GAIN
    # One alone does not help, because the other loses as much.
    one = leave_in_float(model, choice, FloatSites(max=1, drift=0.0), batches[1])
    assert one is choice


def test_operations_are_what_tensorrt_runs_at_once(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    insert_quantizers(model, load_recipe("full"))
    first = operations(model)[:7]
    assert [operation[0].removeprefix("layer.0.") for operation in first] == [
        "qkv_input", "bmm_q", "context", "attention_residual.branch", "ffn_input", "gelu_out", "ffn_residual.branch",
    ]  # fmt: skip
    activations_and_weights = {key for operation in operations(model) for key in operation}
    tables = {site.key for site in encoder_sites(model) if site.name.startswith("embeddings.")}
    assert activations_and_weights == set(model_quantizers(model)) - tables


def test_a_run_says_what_it_left_in_float(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """In run.json, quantization.json, the manifest and the terminal; QAT trains the same sites."""
    checkpoint, path = tmp_path / "model", tmp_path / "mine.yaml"
    model = planted(tiny_model("bert", num_labels=1))
    save_checkpoint(checkpoint, model, make_tokenizer())
    data = yaml.safe_load((Path(api.__file__).parents[1] / "recipes" / "gpu.yaml").read_text())
    path.write_text(yaml.safe_dump({**data, "name": "mine", "float_sites": {"max": 3, "drift": 0.002}}))
    run = api.calibrate(
        checkpoint, output_dir=tmp_path / "run", recipe=load_recipe(str(path)), sample=True, task="STS-B",
        max_seq_length=32, calibration_samples=16,
    )  # fmt: skip
    assert run.in_float
    off = set(run.in_float.sites)
    assert set(OUTPUT) <= off
    stored = json.loads((run.path / "ptq" / "quantization.json").read_text())["recipe"]
    assert {key for key, spec in stored["sites"].items() if not spec["enabled"]} == off
    assert not {"float_sites", "alternatives"} & set(stored)
    assert {key for key, spec in stored["qat"]["start"]["sites"].items() if not spec["enabled"]} == off
    quantized, _ = load_quantized(run.path / "ptq")
    assert off.isdisjoint(model_quantizers(quantized))
    assert trial_lines(run.trials, run.in_float)[-1].endswith("<- kept")
    exported = export_onnx(
        quantized, tmp_path / "model.onnx", "int8", ["input_ids", "attention_mask", "token_type_ids"]
    )
    report = lint(exported.path)
    assert "layer 0 attention: output GEMM" in report.in_float
    assert len(report.in_float) == report.forecast.gemms + report.forecast.bmms - (
        report.forecast.int8_gemms + report.forecast.int8_bmms
    ) - sum("head" in block.name for block in report.blocks for item in block.items if item.part.name == "GEMM")


def test_a_recipe_says_it_and_is_read_back() -> None:
    data = {"name": "mine", "sites": {"gelu_out": None}, "alternatives": [{"smooth_gelu": 0.5}]}
    recipe = Recipe.from_dict({**data, "float_sites": {"drift": 0.1}})
    assert recipe.float_sites == FloatSites(4, 0.1)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert [each.float_sites for each in recipe.candidates] == [None, None]
    assert Recipe.from_dict(data).float_sites is None
    for wrong, says in (({"max": 0}, "max must be a whole number"), ({"drift": -1}, "drift must be a number"),
                        ({"sites": 1}, "unknown key 'sites'"), (3, "expected a mapping")):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            Recipe.from_dict({**data, "float_sites": wrong})


def test_the_table_ends_with_what_stays_in_float() -> None:
    lines = trial_lines([Trial("mse", 0.5)], InFloat((OUTPUT,), 0.0125))
    assert lines[-1] == f"    0.0125  and in floating point: {', '.join(OUTPUT)}  <- kept"


@pytest.mark.parametrize("name", [*ARCHITECTURES, *APART])
def test_each_quantizer_but_those_of_tables_belongs_to_an_operation(name: str, tiny_model: Callable[..., Any]) -> None:
    """A site that is in no operation would stay in INT8 beside the others of its product."""
    model = tiny_model(name)
    insert_quantizers(model, load_recipe("full"))
    keys = {key for operation in operations(model) for key in operation}
    assert {key for key in set(model_quantizers(model)) - keys if not key.startswith("embeddings")} == set()
