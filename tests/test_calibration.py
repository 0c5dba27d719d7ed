"""Calibration: the amax it finds against NumPy; what it refuses is in test_calibration_errors.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import layer_count

from q8trt.errors import QuantizationError
from q8trt.quantization.architectures import ARCHITECTURES
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.calibrators import EMA_DECAY, HistogramCalibrator
from q8trt.quantization.histogram import BINS
from q8trt.quantization.insertion import insert_quantizers, model_quantizers, set_quantization
from q8trt.quantization.libraries import MODELOPT, ModelOpt
from q8trt.quantization.observation import text_of
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.sites import ACTIVATION, SITE_KINDS, encoder_sites

LINEAR, FULL = load_recipe("linear"), load_recipe("full")


def recipe_of(**activations: Any) -> Recipe:
    """Every site there is, with these settings for the activations."""
    sites: dict[str, Any] = {name: {} for name in SITE_KINDS}
    return Recipe.from_dict({"name": "mine", "activations": activations, "weights": {"axis": 0}, "sites": sites})


@pytest.fixture
def batches(tiny_batch: Callable[..., Any]) -> list[dict[str, torch.Tensor]]:
    return [tiny_batch("bert", (3, 17), seed) for seed in range(4)]


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model()


def observed(model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, list[np.ndarray]]:
    """Site key -> for each batch, the magnitudes of text that a float BERT computes there, by plain hooks on its linears."""
    seen: dict[str, list[np.ndarray]] = {}
    hooks, mask = [], None

    def watch(module: Any, **sites: Callable[[Any, Any], torch.Tensor]) -> None:
        def hook(_: Any, args: Any, output: Any) -> None:
            for key, tensor_of in sites.items():
                tensor = tensor_of(args, output)
                text = tensor[mask] if tensor.ndim == 3 else tensor
                seen.setdefault(key, []).append(np.abs(text.numpy().ravel()))

        hooks.append(module.register_forward_hook(hook))

    first, second, result = (lambda args, _: args[0]), (lambda args, _: args[1]), (lambda _, output: output)
    for number, layer in enumerate(model.bert.encoder.layer):
        attention, head_size = layer.attention, layer.attention.self.attention_head_size
        at = lambda number=number, **sites: {f"layer.{number}.{k}": v for k, v in sites.items()}  # noqa: E731
        watch(attention.self.query, **at(qkv_input=first, bmm_q=lambda _, q, d=head_size: q / d**0.5))
        watch(attention.self.key, **at(bmm_k=result))
        watch(attention.self.value, **at(bmm_v=result))
        watch(attention.output.dense, **at(context=first) | at(**{"attention_residual.branch": result}))
        watch(attention.output, **at(**{"attention_residual.skip": second}))
        watch(layer.intermediate.dense, **at(ffn_input=first))
        watch(layer.output.dense, **at(gelu_out=first) | at(**{"ffn_residual.branch": result}))
        watch(layer.output, **at(**{"ffn_residual.skip": second}))
    watch(model.bert.pooler.dense, **{"pooler.input": first})
    watch(model.classifier, **{"classifier.input": first})
    with torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"].bool()
            model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def switches(model: Any) -> set[tuple[Any, ...]]:
    return {
        (q._if_quant, q._if_calib, q._disabled, len(q._forward_pre_hooks)) for q in model_quantizers(model).values()
    }


def calibrated(model: Any, batches: list[Any], **activations: Any) -> dict[str, float]:
    """Site key -> amax of the activations, of every site but the fixed one."""
    recipe = recipe_of(**activations)
    insert_quantizers(model, recipe)
    amax = calibrate(model, recipe, batches).amax
    assert list(amax) == [site.key for site in encoder_sites(model)]
    return {s.key: amax[s.key] for s in encoder_sites(model) if s.kind == ACTIVATION and s.name != "softmax_out"}


def test_max_is_the_largest_magnitude_of_text(model: Any, batches: list[Any]) -> None:
    values = {key: np.concatenate(arrays) for key, arrays in observed(model, batches).items()}
    amax = calibrated(model, batches, calibrator="max")
    assert len(values) == 2 * 11 + 2
    assert amax.keys() == values.keys()
    for key, array in values.items():
        assert amax[key] == pytest.approx(array.max(), rel=1e-5), key


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 100])
def test_percentile(model: Any, batches: list[Any], percentile: float) -> None:
    values = {key: np.concatenate(arrays) for key, arrays in observed(model, batches).items()}
    amax = calibrated(model, batches, calibrator="percentile", percentile=percentile)
    assert amax.keys() == values.keys()
    for key, array in values.items():
        exact = np.percentile(array, percentile, method="inverted_cdf")
        assert exact * (1 - 1e-5) <= amax[key] <= exact + 2.01 * array.max() / BINS, key


def test_ema(model: Any, batches: list[Any]) -> None:
    values = observed(model, batches)
    weights = EMA_DECAY ** np.arange(len(batches))[::-1]
    amax = calibrated(model, batches, calibrator="ema")
    for key, arrays in values.items():
        maxima = np.array([array.max() for array in arrays])
        assert amax[key] == pytest.approx((weights * maxima).sum() / weights.sum(), rel=1e-5), key


@pytest.mark.parametrize("calibrator", ["entropy", "mse"])
def test_those_that_weigh_clip_no_more_than_half(model: Any, batches: list[Any], calibrator: str) -> None:
    values = {key: np.concatenate(arrays) for key, arrays in observed(model, batches).items()}
    for key, amax in calibrated(model, batches, calibrator=calibrator).items():
        assert values[key].max() / 2 < amax <= values[key].max() * 1.0001, key


def test_padding_is_not_looked_at(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], architecture: str
) -> None:
    """More of it changes nothing."""
    batch = tiny_batch(architecture, (4, 20), 1)
    pad = {"input_ids": tiny_model(architecture).config.pad_token_id}
    wider = {k: torch.nn.functional.pad(v, (0, 9), value=pad.get(k, 0)) for k, v in batch.items()}
    found = []
    for inputs in (batch, wider):
        model = tiny_model(architecture)
        insert_quantizers(model, FULL)
        found.append(calibrate(model, FULL, [inputs]).amax)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_text_of() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    hidden = torch.arange(6.0).view(2, 3, 1).expand(2, 3, 5)
    heads = hidden[:, None].expand(2, 4, 3, 5)
    assert text_of(hidden, mask)[:, 0].tolist() == [0, 1, 3]
    assert text_of(heads, mask).shape == (3, 4, 5)
    assert sorted(set(text_of(heads, mask).flatten().tolist())) == [0, 1, 3]
    assert text_of(hidden[:, 0], mask).shape == (2, 5)
    assert text_of(hidden, None) is hidden


@pytest.mark.parametrize("mask", [True, False])
def test_without_a_mask(model: Any, batches: list[Any], mask: bool) -> None:
    whole = [{**batch, "attention_mask": torch.ones_like(batch["attention_mask"])} for batch in batches]
    if not mask:
        whole = [{name: batch[name] for name in ("input_ids", "token_type_ids")} for batch in batches]
    expected = observed(model, [{**b, "attention_mask": torch.ones_like(b["input_ids"])} for b in whole])
    amax = calibrated(model, whole, calibrator="max")
    for key, arrays in expected.items():
        assert amax[key] == pytest.approx(max(array.max() for array in arrays), rel=1e-5)


def test_a_fixed_range_is_the_recipes(model: Any, batches: list[Any]) -> None:
    sites = {"qkv_input": {}, "layer.1.qkv_input": {"calibrator": "fixed", "amax": 2.5}, "softmax_out": {}}
    recipe = Recipe.from_dict({"name": "mine", "activations": {"calibrator": "max"}, "sites": sites})
    insert_quantizers(model, recipe)
    amax = calibrate(model, recipe, batches).amax
    assert {key: amax[key] for key in amax if key != "layer.0.qkv_input"} == {
        "layer.0.softmax_out": 1.0,
        "layer.1.qkv_input": 2.5,
        "layer.1.softmax_out": 1.0,
    }


def test_weights_take_each_channels_maximum(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], architecture: str
) -> None:
    model = tiny_model(architecture)
    insert_quantizers(model, FULL)
    calibrate(model, FULL, [tiny_batch(architecture)])
    quantizers, compared = model_quantizers(model), 0
    for site in encoder_sites(model):
        if site.kind != ACTIVATION and site.key in quantizers:
            weight = np.abs(model.get_parameter(site.parameter).detach().numpy()).max(axis=1)
            weight[weight == 0] = weight[weight > 0].min()  # the padding token's embedding
            np.testing.assert_array_equal(quantizers[site.key].amax.flatten().numpy(), weight)
            compared += 1
    assert compared == 6 * layer_count(architecture) + (3 if ARCHITECTURES[architecture].token_type_embeddings else 2)


@pytest.mark.parametrize("num_bits", [8, 4, 2])
@pytest.mark.parametrize("axis", [None, 0])
def test_weights_by_mse_lose_less(model: Any, batches: list[Any], num_bits: int, axis: int | None) -> None:
    errors = {}
    for calibrator in ("max", "mse"):
        quantized = copy.deepcopy(model)
        weights = {"calibrator": calibrator, "num_bits": num_bits, "axis": axis}
        recipe = Recipe.from_dict(
            {"name": "mine", "weights": weights, "sites": {"embeddings.word": {}, "query.weight": {}, "gelu_out": {}}}
        )
        insert_quantizers(quantized, recipe)
        calibrate(quantized, recipe, batches)
        modules = (quantized.bert.embeddings.word_embeddings, quantized.bert.encoder.layer[1].attention.self.query)
        errors[calibrator] = [
            float((m.weight_quantizer(m.weight) - m.weight).square().mean().detach()) for m in modules
        ]
    assert all(mse <= largest for mse, largest in zip(errors["mse"], errors["max"], strict=True))
    if num_bits < 8:
        assert all(mse < 0.9 * largest for mse, largest in zip(errors["mse"], errors["max"], strict=True))


def test_rows_of_zeros_in_a_table_of_embeddings(model: Any, batches: list[Any]) -> None:
    """The padding token's row is zero when a table is new: it takes the smallest scale there is."""
    table = model.bert.embeddings.word_embeddings
    table.weight.data[0] = 0
    table.weight.data[9] = 0
    insert_quantizers(model, FULL)
    calibrate(model, FULL, batches)
    expected = table.weight.detach().abs().amax(1)
    smallest = expected[expected > 0].min()
    assert torch.equal(table.weight_quantizer.amax[:, 0], torch.where(expected > 0, expected, smallest))
    assert not table.weight_quantizer(table.weight)[[0, 9]].any()


def test_a_table_of_zeros_is_named(model: Any, batches: list[Any]) -> None:
    model.bert.embeddings.token_type_embeddings.weight.data.zero_()
    insert_quantizers(model, FULL)
    with pytest.raises(QuantizationError, match=r"^embeddings\.token_type: amax is zero for 2 of 2 channels"):
        calibrate(model, FULL, batches)


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


class Keeping(ModelOpt):
    """ModelOpt, whose calibrators one can look at."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "made", [])

    def new_calibrator(self, spec: Any) -> Any:
        self.made.append(super().new_calibrator(spec))  # type: ignore[attr-defined]
        return self.made[-1]  # type: ignore[attr-defined]


def test_memory_does_not_grow(model: Any, tiny_batch: Callable[..., Any]) -> None:
    recipe, library, sizes = recipe_of(calibrator="percentile"), Keeping(), []

    def measure(_: int) -> None:
        histograms = [c.histogram for c in library.made if isinstance(c, HistogramCalibrator)]
        sizes.append(sum(histogram.counts.untyped_storage().nbytes() for histogram in histograms))
        assert all(vars(histogram).keys() == {"counts", "width", "largest"} for histogram in histograms)

    insert_quantizers(model, recipe)
    calibrate(model, recipe, (tiny_batch("bert", (2, 9), seed) for seed in range(50)), measure, library)
    assert len(sizes) == 50
    assert set(sizes) == {24 * BINS * 8}


def test_batches_far_apart(model: Any, batches: list[Any]) -> None:
    """The first batch a millionth of the second: the range has to grow twenty times."""
    norm = model.bert.embeddings.LayerNorm
    insert_quantizers(model, LINEAR)
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()

    def growing() -> Iterator[Any]:
        for share in (0.0, 1e-6, 1.0):
            norm.weight.copy_(weight * share)
            norm.bias.copy_(bias * share)
            yield batches[0]

    spread = calibrate(model, LINEAR, growing()).amax["layer.0.qkv_input"]
    assert 0.9 * calibrate(model, LINEAR, batches[:1]).amax["layer.0.qkv_input"] < spread


def test_the_order_of_batches_does_not_matter(tiny_model: Callable[..., Any], batches: list[Any]) -> None:
    found = []
    for some in (batches, batches[::-1]):
        model = tiny_model()
        insert_quantizers(model, FULL)
        found.append(calibrate(model, FULL, some).amax)
    assert found[0] == found[1]


def test_quantizers_that_were_off_are_calibrated_too(tiny_model: Callable[..., Any], batches: list[Any]) -> None:
    model, other = tiny_model(), tiny_model()
    for one in (model, other):
        insert_quantizers(one, FULL)
    set_quantization(model, False)
    assert calibrate(model, FULL, batches) == calibrate(other, FULL, batches)
    assert switches(model) == switches(other)


def test_another_librarys_calibrators_are_used(model: Any, batches: list[Any]) -> None:
    class Seven:
        def collect(self, tensor: torch.Tensor) -> None:
            pass

        def compute_amax(self) -> torch.Tensor:
            return torch.tensor(7.0)

    class Sevens(ModelOpt):
        def new_calibrator(self, spec: Any) -> Any:
            return MODELOPT.new_calibrator(spec) if spec.axis == 0 else Seven()

    insert_quantizers(model, FULL)
    amax = calibrate(model, FULL, batches, library=Sevens()).amax
    activations = {amax[site.key] for site in encoder_sites(model) if site.kind == ACTIVATION and site.key in amax}
    assert activations == {7.0, 1.0}
