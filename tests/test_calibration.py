"""Calibration: the amax it finds against NumPy, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from q8trt.errors import QuantizationError
from q8trt.quantization.calibration import calibrate, check_amax
from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.sites import SITE_KINDS, encoder_sites

LINEAR = load_recipe("linear")
ACTIVATIONS = [name for name in SITE_KINDS if not name.endswith(".weight")]


def recipe_of(**activations: Any) -> Recipe:
    """The sites of `linear` with other settings for the activations."""
    sites: dict[str, Any] = {name: {} for name in SITE_KINDS}
    return Recipe.from_dict({"name": "mine", "activations": activations, "weights": {"axis": 0}, "sites": sites})


@pytest.fixture
def batches(tiny_batch: Callable[..., Any]) -> list[dict[str, torch.Tensor]]:
    return [tiny_batch("bert", (3, 17), seed) for seed in range(4)]


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model()


def observed(model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Magnitudes of all that the float model feeds into each activation site, by plain hooks."""
    seen: dict[str, list[np.ndarray]] = {}
    hooks = []
    for site in encoder_sites(model):
        if site.name in ACTIVATIONS:
            watch = lambda _, args, kwargs, key=site.key: seen.setdefault(key, []).append(  # noqa: E731
                (args[0] if args else kwargs["hidden_states"]).numpy().ravel()
            )
            hooks.append(model.get_submodule(site.module).register_forward_pre_hook(watch, with_kwargs=True))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    return {key: np.abs(np.concatenate(arrays)) for key, arrays in seen.items()}


def switches(model: Any) -> set[tuple[Any, ...]]:
    return {
        (q._if_quant, q._if_calib, q._disabled, len(q._forward_pre_hooks)) for q in model_quantizers(model).values()
    }


def test_max_is_the_largest_magnitude(model: Any, batches: list[Any]) -> None:
    expected = {key: float(values.max()) for key, values in observed(model, batches).items()}
    insert_quantizers(model, recipe_of(calibrator="max"))
    amax = calibrate(model, recipe_of(calibrator="max"), batches)
    assert {key: amax[key] for key in expected} == expected
    assert len(expected) == 2 * 4
    assert list(amax) == [site.key for site in encoder_sites(model)]


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 100])
def test_percentile(model: Any, batches: list[Any], percentile: float) -> None:
    """Within one bin: the first batch's range in 2048 parts, each value known to the bin it fell in."""
    values = observed(model, batches)
    width = {key: array.max() / 2048 for key, array in observed(model, batches[:1]).items()}
    recipe = recipe_of(calibrator="percentile", percentile=percentile)
    insert_quantizers(model, recipe)
    amax = calibrate(model, recipe, batches)
    assert len(values) == 8
    for key, array in values.items():
        # the order statistics around the percentile: between them any value keeps that share
        lower, upper = (np.percentile(array, percentile, method=m) for m in ("lower", "higher"))
        assert lower - 1.01 * width[key] <= amax[key] <= upper + 1.01 * width[key], key


def test_weights_take_each_channels_maximum(architecture: str, tiny_quantized: Callable[..., Any]) -> None:
    model, _ = tiny_quantized(architecture)
    quantizers = model_quantizers(model)
    compared = 0
    for site in encoder_sites(model):
        if site.name not in ACTIVATIONS:
            weight = model.get_parameter(f"{site.module}.weight").detach().numpy()
            np.testing.assert_array_equal(quantizers[site.key].amax.flatten().numpy(), np.abs(weight).max(axis=1))
            compared += 1
    assert compared == 12


def test_two_calibrations_are_bit_equal(tiny_model: Callable[..., Any], batches: list[Any]) -> None:
    states = []
    for _ in range(2):
        model = tiny_model()
        insert_quantizers(model, LINEAR)
        calibrate(model, LINEAR, batches)
        states.append(model.state_dict())
    calibrate(model, LINEAR, batches)  # and again on the same model: nothing of the first time is left
    states.append(model.state_dict())
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_parameters_and_switches_are_left_alone(model: Any, batches: list[Any]) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    insert_quantizers(model, LINEAR)
    fresh = switches(model)
    rows: list[int] = []
    calibrate(model.train(), LINEAR, batches, rows.append)
    assert rows == [3, 3, 3, 3]
    assert switches(model) == fresh
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_observation_is_in_float(model: Any, batches: list[Any]) -> None:
    """While calibrating, no site sees what another has quantized already: the logits are the float model's."""
    logits = [model(**batch).logits for batch in batches]
    insert_quantizers(model, LINEAR)
    seen: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _, __, output: seen.append(output.logits))
    calibrate(model, LINEAR, batches)
    calibrate(model, LINEAR, batches)  # now that the quantizers have an amax
    hook.remove()
    assert len(seen) == 8
    assert all(torch.equal(one, other) for one, other in zip(seen, logits * 2, strict=True))


def test_memory_does_not_grow(model: Any, batches: list[Any]) -> None:
    insert_quantizers(model, LINEAR)
    sizes: list[int] = []

    def measure(_: int) -> None:
        calibrators = [q._calibrator for key, q in model_quantizers(model).items() if not key.endswith("weight")]
        sizes.append(sum(calibrator._calib_hist.numel() for calibrator in calibrators))

    calibrate(model, LINEAR, batches[:1] * 20, measure)
    assert sizes == [8 * 2048] * 20
    assert all(q._calibrator._calib_hist is None for q in model_quantizers(model).values() if q.axis is None)


@pytest.mark.parametrize("first", [1e-6, 0.0])
def test_a_histogram_is_bounded(model: Any, batches: list[Any], first: float) -> None:
    """Were the second batch's range cut into bins of the first one's width, they would fill the memory."""
    norm = model.bert.embeddings.LayerNorm
    insert_quantizers(model, LINEAR)
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()

    def growing() -> Iterator[Any]:
        norm.weight.copy_(weight * first)
        norm.bias.copy_(bias * first)
        yield batches[0]
        norm.weight.copy_(weight)
        yield batches[1]

    with pytest.raises(
        QuantizationError, match=r"^layer\.0\.qkv_input: a batch reaches .* the first one only"
    ) as caught:
        calibrate(model, LINEAR, growing())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(model: Any, batches: list[Any], value: float) -> None:
    model.bert.encoder.layer[1].intermediate.dense.weight.data[3, 4] = value
    insert_quantizers(model, LINEAR)
    with pytest.raises(QuantizationError, match=r"^layer\.1\.ffn_intermediate\.weight carries NaN or infinity"):
        calibrate(model, LINEAR, batches)


@pytest.mark.parametrize("calibrator", ["max", "percentile"])
def test_activations_that_are_not_finite_are_named(model: Any, batches: list[Any], calibrator: str) -> None:
    model.bert.encoder.layer[0].intermediate.dense.bias.data[0] = float("nan")
    recipe = recipe_of(calibrator=calibrator)
    insert_quantizers(model, recipe)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.gelu_out carries NaN or infinity; check the checkpoint"):
        calibrate(model, recipe, batches)


@pytest.mark.parametrize("calibrator", ["max", "percentile"])
def test_all_zero_activations_are_named(model: Any, batches: list[Any], calibrator: str) -> None:
    model.bert.encoder.layer[1].intermediate.dense.bias.data.fill_(-1e4)  # gelu(-10000) = 0
    recipe = recipe_of(calibrator=calibrator)
    insert_quantizers(model, recipe)
    with pytest.raises(QuantizationError, match=r"^layer\.1\.gelu_out: amax is zero for 1 of 1 channels"):
        calibrate(model, recipe, batches)


def test_an_all_zero_channel_is_named(model: Any, batches: list[Any]) -> None:
    model.bert.encoder.layer[0].attention.self.value.weight.data[5:7] = 0
    insert_quantizers(model, LINEAR)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.value\.weight: amax is zero for 2 of 32 channels"):
        calibrate(model, LINEAR, batches)


@pytest.mark.parametrize("calibrator", ["max", "percentile"])
def test_no_batches(model: Any, calibrator: str) -> None:
    recipe = recipe_of(calibrator=calibrator)
    insert_quantizers(model, recipe)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.qkv_input was not calibrated: no batch reached it"):
        calibrate(model, recipe, [])


def test_an_exception_restores_and_leaves_nothing_for_the_next_time(
    tiny_model: Callable[..., Any], batches: list[Any]
) -> None:
    def broken() -> Iterator[Any]:
        yield batches[0]
        raise KeyboardInterrupt

    model, other = tiny_model(), tiny_model()
    insert_quantizers(model, LINEAR)
    insert_quantizers(other, LINEAR)
    fresh = switches(model)
    assert len(fresh) == 1
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, LINEAR, broken())
    assert switches(model) == fresh
    assert calibrate(model, LINEAR, batches[1:]) == calibrate(other, LINEAR, batches[1:])


def test_check_amax_of_an_uncalibrated_model(model: Any) -> None:
    quantizers = insert_quantizers(model, LINEAR)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.qkv_input is not calibrated; run calibrate\.py"):
        check_amax(quantizers)


def test_check_amax_of_an_infinite_one(tiny_quantized: Callable[..., Any]) -> None:
    quantizers = model_quantizers(tiny_quantized()[0])
    quantizers["layer.1.context"].amax = torch.tensor(float("inf"))
    with pytest.raises(QuantizationError, match=r"^layer\.1\.context: amax is not finite"):
        check_amax(quantizers)
