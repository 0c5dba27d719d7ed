"""SmoothQuant: the formula, the model that it leaves as it was, and what it gains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import layer_count

from q8trt.errors import QuantizationError
from q8trt.quantization.architectures import ARCHITECTURES
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers, model_quantizers, set_quantization
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.sites import encoder_sites
from q8trt.quantization.smoothquant import (
    SMOOTHED,
    channel_maxima,
    outlier_smoothing,
    residual_smoothing,
    smooth,
    smoothable,
    smoothing,
    smoothing_scales,
    unsmooth,
)

LINEAR = load_recipe("linear").candidates[0]


def recipe_of(alpha: float | None, **sites: Any) -> Recipe:
    data = {**LINEAR.to_dict(), "qat": {}}
    return Recipe.from_dict({**data, "smoothquant": alpha, "sites": sites or data["sites"]})


def smooth_by(model: Any, recipe: Recipe, batches: list[Any]) -> dict[str, torch.Tensor]:
    """Smooth what `recipe` smooths, by what the batches show: a site's key -> s."""
    maxima = channel_maxima(model, model_quantizers(model), smoothable(model, recipe), batches)
    scales = smoothing_scales(model, recipe, maxima)
    smooth(model, scales)
    return scales


@pytest.fixture
def batches(tiny_batch: Callable[..., Any], architecture: str) -> list[dict[str, torch.Tensor]]:
    return [tiny_batch(architecture, (4, 17), seed) for seed in range(3)]


@torch.no_grad()
def logits(model: Any, batches: list[Any]) -> torch.Tensor:
    return torch.cat([model(**batch).logits for batch in batches])


def inputs_of_linears(model: Any, batches: list[Any]) -> dict[str, np.ndarray]:
    """Path of a linear -> the largest magnitude of each channel of text that it reads, by plain hooks."""
    seen: dict[str, np.ndarray] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def look(_: Any, args: Any, name: str = name) -> None:
                tensor = args[0][mask] if args[0].ndim == 3 else args[0]
                largest = np.abs(tensor.numpy()).max(axis=0)
                seen[name] = np.maximum(seen.get(name, 0), largest)

            hooks.append(module.register_forward_pre_hook(look))
    with torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"].bool()
            model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_formula(alpha: float) -> None:
    """alpha 1 takes all from the activations, 0 all from the weights, 1/2 makes both alike."""
    generator = np.random.default_rng(0)
    x, w = np.abs(generator.normal(size=8)).astype(np.float32), generator.normal(size=(5, 8)).astype(np.float32)
    columns = np.abs(w).max(axis=0)
    scale = smoothing(torch.from_numpy(x), torch.from_numpy(w), alpha).numpy()
    exact = x**alpha / columns ** (1 - alpha)
    np.testing.assert_array_equal(scale, 2 ** np.rint(np.log2(exact)))
    if alpha == 0.5:
        assert np.abs(np.log2(x / scale) - np.log2(columns * scale)).max() <= 1 + 1e-5
    elif alpha == 1.0:
        assert np.abs(np.log2(x / scale)).max() <= 0.5 + 1e-5


def test_channels_without_a_scale_and_beyond_fp16() -> None:
    activations = torch.tensor([0.0, 2.0, 1e12, 1e-12])
    weights = torch.tensor([[1.0, 0.0, 1e-4, 1e4]])
    assert smoothing(activations, weights, 0.5).tolist() == [1.0, 1.0, 2**13, 2**-13]


def test_channel_maxima_are_of_text(tiny_model: Callable[..., Any], batches: list[Any], architecture: str) -> None:
    expected = inputs_of_linears(tiny_model(architecture), batches)
    model = tiny_model(architecture)
    quantizers = insert_quantizers(model, LINEAR)
    keys = [key for key in quantizers if key.endswith(("qkv_input", "ffn_input"))]
    found = channel_maxima(model, quantizers, keys, batches)
    assert len(found) == 2 * layer_count(architecture)
    query = "." + ARCHITECTURES[architecture].query.rpartition(".")[2]
    for site in encoder_sites(model):
        if site.key in found:
            path = site.module + ("" if site.name == "ffn_input" else query)
            np.testing.assert_allclose(found[site.key].numpy(), expected[path], rtol=1e-5)


def test_the_model_computes_what_it_did(tiny_model: Callable[..., Any], batches: list[Any], architecture: str) -> None:
    float_model = tiny_model(architecture)
    expected = logits(float_model, batches)
    model = copy.deepcopy(float_model)
    insert_quantizers(model, LINEAR)
    scales = smooth_by(model, recipe_of(0.5), batches)
    set_quantization(model, False)
    assert torch.equal(logits(model, batches), expected)
    # And this is not because nothing happens:
    assert len(scales) == 2 * layer_count(architecture)
    assert any((scale != 1).any() for scale in scales.values())
    sites = {site.key: site for site in encoder_sites(model)}
    for key, scale in scales.items():
        for name in SMOOTHED[sites[key].name]:
            path = sites[key.removesuffix(sites[key].name) + name].parameter
            assert torch.equal(model.get_parameter(path), float_model.get_parameter(path) * scale)
    changed = [
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, float_model.get_parameter(name))
    ]
    assert len(changed) == 4 * layer_count(architecture)


def test_channels_are_smoothed_as_the_formula_says(
    tiny_model: Callable[..., Any], batches: list[Any], architecture: str
) -> None:
    """With alpha 1/2, what a linear reads and its weight's columns reach equally far, as near as powers of two allow."""
    raw = inputs_of_linears(tiny_model(architecture), batches)
    model = tiny_model(architecture)
    insert_quantizers(model, LINEAR)
    smooth_by(model, recipe_of(0.5), batches)
    compared = 0
    for site in encoder_sites(model):
        if site.name not in ("qkv_input", "ffn_input"):
            continue
        quantizer, key = model.get_submodule(site.quantizer), site.key.removesuffix(site.name)
        readers = [other for other in encoder_sites(model) if other.key in {key + name for name in SMOOTHED[site.name]}]
        columns = np.max(
            [np.abs(model.get_parameter(r.parameter).detach().numpy()).max(axis=0) for r in readers], axis=0
        )
        smoothed = raw[readers[0].module] * quantizer.pre_quant_scale.numpy()
        assert np.abs(np.log2(smoothed / columns)).max() <= 1 + 1e-4
        compared += 1
    assert compared == 2 * layer_count(architecture)


def test_calibration_is_of_what_is_quantized(
    tiny_model: Callable[..., Any], batches: list[Any], architecture: str
) -> None:
    """amax is that of the smoothed activations, and of the weights that were multiplied."""
    raw = inputs_of_linears(tiny_model(architecture), batches)
    recipe = recipe_of(0.5, qkv_input={}, ffn_input={"calibrator": "max"}, **{"ffn_intermediate.weight": {"axis": 0}})
    model, rows = tiny_model(architecture), []
    insert_quantizers(model, recipe)
    amax = calibrate(model, recipe, iter(batches), rows.append).amax  # an iterator, of which two passes are made
    assert rows == [4] * 6
    key = f"layer.{layer_count(architecture) - 1}.ffn_input"
    site = next(site for site in encoder_sites(model) if site.key == key)
    linear = model.get_submodule(site.module)
    scale = linear.input_quantizer.pre_quant_scale.numpy()
    assert amax[key] == pytest.approx((raw[site.module] * scale).max(), rel=1e-4)
    weight = linear.weight.detach().abs().amax(1)
    assert torch.equal(linear.weight_quantizer.amax[:, 0], weight)


def test_only_where_the_recipe_says_so(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    batches = [tiny_batch("bert")]
    smoothed = {}
    for alpha in (None, 0.5):
        model = tiny_model()
        insert_quantizers(model, recipe_of(alpha))
        calibrate(model, recipe_of(alpha), batches)
        smoothed[alpha] = [
            k for k, quantizer in model_quantizers(model).items() if quantizer.pre_quant_scale is not None
        ]
    assert smoothed[None] == []
    assert smoothed[0.5] == ["layer.0.qkv_input", "layer.0.ffn_input", "layer.1.qkv_input", "layer.1.ffn_input"]


def test_a_linear_with_an_outlier_channel_loses_less(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    """A LayerNorm whose gain is large in one channel, as in BERT: nearly all levels would be spent on that one."""
    batches = [tiny_batch("bert", (4, 17), seed) for seed in range(3)]
    float_model = tiny_model()
    norm = float_model.bert.encoder.layer[0].attention.output.LayerNorm
    norm.weight.data[5] *= 60
    float_model.bert.encoder.layer[0].intermediate.dense.weight.data[:, 5] /= 60
    expected, errors = logits(float_model, batches), {}
    for alpha in (None, 0.5):
        recipe = recipe_of(alpha, ffn_input={"calibrator": "max"}, **{"ffn_intermediate.weight": {"axis": 0}})
        model = copy.deepcopy(float_model)
        insert_quantizers(model, recipe)
        calibrate(model, recipe, batches)
        errors[alpha] = float((logits(model, batches) - expected).square().mean())
    assert errors[0.5] < errors[None] / 10


def test_calibrating_again_changes_nothing(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    batches, recipe, model = [tiny_batch("bert")], recipe_of(0.5), tiny_model()
    insert_quantizers(model, recipe)
    first = calibrate(model, recipe, batches)
    state = copy.deepcopy(model.state_dict())
    assert calibrate(model, recipe, batches) == first
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_library_that_cannot(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    class TensorQuantizer(torch.nn.Module):
        def disable_quant(self) -> None: ...

        def enable(self) -> None: ...

    model = tiny_model()
    insert_quantizers(model, LINEAR)
    model.bert.encoder.layer[0].attention.self.input_quantizer = TensorQuantizer()
    with pytest.raises(
        QuantizationError,
        match=r"^layer\.0\.qkv_input: smoothing needs a quantizer with a pre_quant_scale, which this library's "
        r"TensorQuantizer lacks; use --quantizer modelopt, or drop smoothquant, smooth_gelu, smooth_residuals from the recipe$",
    ):
        calibrate(model, recipe_of(0.5), [tiny_batch("bert")])


def test_no_batches(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    insert_quantizers(model, LINEAR)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.qkv_input was not smoothed: no batch reached it"):
        calibrate(model, recipe_of(0.5), [])


def test_values_that_are_not_finite(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    model = tiny_model()
    model.bert.encoder.layer[0].attention.output.LayerNorm.bias.data[3] = float("nan")
    insert_quantizers(model, LINEAR)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.ffn_input has NaN or infinity"):
        calibrate(model, recipe_of(0.5), [tiny_batch("bert")])
    # Also of a weight that has no quantizer, and is looked at by nobody else.
    model = tiny_model()
    model.bert.encoder.layer[1].attention.self.value.weight.data[3, 3] = float("inf")
    insert_quantizers(model, recipe_of(0.5, qkv_input={}))
    with pytest.raises(QuantizationError, match=r"^layer\.1\.value\.weight has NaN or infinity"):
        smooth_by(model, recipe_of(0.5, qkv_input={}), [tiny_batch("bert")])


def test_the_state_dict_holds_the_scale(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    """load_quantized must restore one buffer beside amax."""
    model, recipe, batches = tiny_model(), recipe_of(0.5), [tiny_batch("bert")]
    insert_quantizers(model, recipe)
    calibrate(model, recipe, batches)
    state = model.state_dict()
    other = tiny_model(seed=1)
    insert_quantizers(other, recipe)
    for site in encoder_sites(other):
        if f"{site.quantizer}._pre_quant_scale" in state:
            other.get_submodule(site.quantizer).pre_quant_scale = state[f"{site.quantizer}._pre_quant_scale"]
        if f"{site.quantizer}._amax" in state:
            other.get_submodule(site.quantizer).amax = state[f"{site.quantizer}._amax"]
    other.load_state_dict(state, strict=True)
    assert torch.equal(logits(other, batches), logits(model, batches))
    assert len([name for name in state if name.endswith("_pre_quant_scale")]) == 4


ADDS = ["layer.0.attention_residual", "layer.0.ffn_residual", "layer.1.attention_residual", "layer.1.ffn_residual"]
RESIDUALS = Recipe.from_dict(
    {"name": "residuals", "sites": {"attention_residual": {}, "ffn_residual": {}}, "smooth_residuals": 1.0}
)


def test_the_divisor_of_residuals_is_a_power_of_two() -> None:
    maxima = torch.tensor([0.0, 1e-9, 0.3, 1.0, 1.5, 194.0, 1e9])
    assert residual_smoothing(maxima, 1.0).tolist() == [1.0, 2**-13, 0.25, 1.0, 2.0, 256.0, 2**13]
    assert residual_smoothing(maxima, 0.5).tolist() == [1.0, 2**-13, 0.5, 1.0, 1.0, 16.0, 2**13]
    assert residual_smoothing(maxima, 0.0).tolist() == [1.0] * 7


def test_the_divisor_of_what_gelu_returns_is_of_outliers_alone() -> None:
    maxima = torch.tensor([0.0, 1e-9, 0.5, 1.0, 1.2, 4.0, 64.0])
    assert outlier_smoothing(maxima, 1.0).tolist() == [1, 1, 1, 1, 1, 4, 64]
    assert outlier_smoothing(maxima, 0.5).tolist() == [1, 1, 1, 1, 1, 2, 8]
    assert outlier_smoothing(maxima, 0.0).tolist() == outlier_smoothing(torch.zeros(7), 1.0).tolist() == [1] * 7


def test_smoothed_gelu_switched_off_changes_no_bit_and_can_be_undone(
    tiny_model: Callable[..., Any], batches: list[Any], architecture: str
) -> None:
    recipe = Recipe.from_dict({"name": "gelu", "sites": {"gelu_out": {}}, "smooth_gelu": 1.0})
    original, model = tiny_model(architecture), tiny_model(architecture)
    insert_quantizers(model, recipe)
    scales = smooth_by(model, recipe, batches)
    assert list(scales) == ["layer.0.gelu_out", "layer.1.gelu_out"][: layer_count(architecture)]
    assert all(len(scale.unique()) > 1 for scale in scales.values())
    set_quantization(model, False)
    assert torch.equal(logits(model, batches), logits(original, batches))
    unsmooth(model, scales)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_an_outlier_channel_of_gelu_costs_little(tiny_model: Callable[..., Any], tiny_batch: Any) -> None:
    batches, error = [tiny_batch(seed=seed) for seed in range(3)], {}
    original = tiny_model()
    for layer in original.bert.encoder.layer:
        with torch.no_grad():
            layer.intermediate.dense.bias[5] += 100
    for alpha in (None, 0.75):
        model = copy.deepcopy(original)
        recipe = Recipe.from_dict({"name": "gelu", "sites": {"gelu_out": {}}, "smooth_gelu": alpha})
        insert_quantizers(model, recipe)
        calibrate(model, recipe, batches)
        error[alpha] = (logits(model, batches) - logits(original, batches)).abs().max().item()
    assert error[0.75] < error[None] / 5


def test_smoothed_residuals_switched_off_change_no_bit(
    tiny_model: Callable[..., Any], batches: list[Any], architecture: str
) -> None:
    original, model = tiny_model(architecture), tiny_model(architecture)
    insert_quantizers(model, RESIDUALS)
    scales = smooth_by(model, RESIDUALS, batches)
    adds = ADDS[: 2 * layer_count(architecture)]
    assert list(scales) == [f"{add}.{side}" for add in adds for side in ("branch", "skip")]
    assert all(len(scale.unique()) > 1 for scale in scales.values())
    set_quantization(model, False)
    assert torch.equal(logits(model, batches), logits(original, batches))


def test_an_outlier_channel_of_the_residual_costs_little(tiny_model: Callable[..., Any], tiny_batch: Any) -> None:
    """One channel a hundred times the others, as BERT's: without smoothing the others are rounded away."""
    batches, error = [tiny_batch(seed=seed) for seed in range(3)], {}
    original = tiny_model()
    for layer in original.bert.encoder.layer:
        with torch.no_grad():
            layer.output.dense.bias[5] += 100
    for alpha in (None, 1.0):
        model = copy.deepcopy(original)
        recipe = Recipe.from_dict({**RESIDUALS.to_dict(), "smooth_residuals": alpha})
        insert_quantizers(model, recipe)
        calibrate(model, recipe, batches)
        error[alpha] = (logits(model, batches) - logits(original, batches)).abs().max().item()
    assert error[1.0] < error[None] / 5


def test_all_channels_of_a_smoothed_residual_have_one_range(tiny_model: Callable[..., Any], batches: list[Any]) -> None:
    model = tiny_model()
    insert_quantizers(model, RESIDUALS)
    smooth_by(model, RESIDUALS, batches)
    maxima = channel_maxima(model, model_quantizers(model), model_quantizers(model), batches)
    for add in ADDS:
        largest = torch.maximum(maxima[f"{add}.branch"], maxima[f"{add}.skip"])
        assert largest.max() <= 2**0.5 + 1e-6  # a power of two is at most so far from the maximum
        assert largest.min() >= 2**-0.5 - 1e-6
    assert smooth_by(model, RESIDUALS, batches) == {}  # smoothed already


def test_an_add_with_one_quantized_input_is_not_smoothed(tiny_model: Callable[..., Any], batches: list[Any]) -> None:
    model = tiny_model()
    sites = {"ffn_residual.skip": {}, "layer.1.ffn_residual.branch": {}}
    recipe = Recipe.from_dict({"name": "one", "sites": sites, "smooth_residuals": 1.0})
    insert_quantizers(model, recipe)
    assert list(smooth_by(model, recipe, batches)) == ["layer.1.ffn_residual.branch", "layer.1.ffn_residual.skip"]
    assert model_quantizers(model)["layer.0.ffn_residual.skip"].pre_quant_scale is None


def test_residuals_that_no_batch_reaches(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    insert_quantizers(model, RESIDUALS)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.attention_residual\.branch was not smoothed: no batch"):
        calibrate(model, RESIDUALS, [])
