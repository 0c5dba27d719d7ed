"""Training of amax, compared with formulas of the papers, NumPy and finite differences."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.libraries import library
from q8trt.quantization.ranges import SMALLEST, Ranges, _learn, _unlearn, apply_ranges
from q8trt.quantization.recipe import QatSpec, QuantizerSpec, Recipe, load_recipe
from q8trt.quantization.sites import ACTIVATION, encoder_sites

Models = Callable[..., Any]


def quantizer_of(amax: Any, bits: int = 8) -> Any:
    """A calibrated quantizer; `amax` a number, or (C, 1) for one a row."""
    amax = torch.as_tensor(amax, dtype=torch.float32)
    quantizer: Any = library().new_quantizer(QuantizerSpec(num_bits=bits, axis=0 if amax.ndim else None))
    quantizer.amax = amax
    return quantizer.train()


def values(shape: tuple[int, ...] = (6, 40), seed: int = 0) -> torch.Tensor:
    """Normal values, about a twentieth of them outside [-2, 2]."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


ROWS = [[0.5], [1.0], [2.0], [0.1], [3.0], [9.0]]
AMAX = pytest.mark.parametrize("amax", [2.0, ROWS], ids=["per tensor", "per row"])


@AMAX
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("learns_step", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_forward_is_the_frozen_one(amax: Any, bits: int, learns_step: bool, dtype: torch.dtype) -> None:
    quantizer, inputs = quantizer_of(amax, bits), values().to(dtype)
    frozen = quantizer(inputs)
    _learn(quantizer, learns_step)
    learned = quantizer(inputs)
    assert learned.requires_grad
    assert learned.dtype == dtype
    assert torch.equal(learned.detach(), frozen)
    assert torch.equal(quantizer.eval()(inputs), frozen)


def reference(x: np.ndarray, amax: np.ndarray, upstream: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """Gradients of the sum of `upstream` * y, in float64, as the papers write them: of x, of s (lsq), of alpha (pact)."""
    qp, qn = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    x, upstream = x.astype(np.float64), upstream.astype(np.float64)
    step = amax.astype(np.float64) / qp
    v = x / step
    inside = (v >= -qn * (1 + 1e-7)) & (v <= qp * (1 + 1e-7))
    lsq = np.where(inside, np.rint(v) - v, np.where(v > 0, qp, -qn))
    pact = np.where(inside, 0, np.where(v > 0, 1, -qn / qp))
    axes = None if amax.ndim == 0 else tuple(range(1, x.ndim))
    count = x.size / amax.size
    return {
        "x": np.where(inside, upstream, 0),
        "lsq": (upstream * lsq).sum(axes, keepdims=amax.ndim > 0) / math.sqrt(count * qp),
        "pact": (upstream * pact).sum(axes, keepdims=amax.ndim > 0),
        "inside": inside,
    }


@AMAX
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("mode", ["lsq", "pact"])
def test_gradients_are_the_papers(amax: Any, bits: int, mode: str) -> None:
    quantizer, inputs, upstream = quantizer_of(amax, bits), values().requires_grad_(), values(seed=1)
    _learn(quantizer, mode == "lsq")
    quantizer(inputs).backward(upstream)
    expected = reference(inputs.detach().numpy(), quantizer._amax.detach().numpy(), upstream.numpy(), bits)
    assert 0 < expected["inside"].mean() < 1
    np.testing.assert_array_equal(inputs.grad.numpy(), expected["x"].astype(np.float32))
    # amax = Qp * s: by the chain rule its gradient is that of s divided by Qp
    per_amax = expected["lsq"] / (2 ** (bits - 1) - 1) if mode == "lsq" else expected["pact"]
    np.testing.assert_allclose(quantizer._amax.grad.numpy(), per_amax, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("mode", ["lsq", "pact"])
def test_gradient_of_clipped_values_is_the_difference_quotient(mode: str) -> None:
    """Outside the range y is linear in amax, rounding does not matter: finite differences of the forward are exact."""
    quantizer = quantizer_of(2.0)
    inputs = torch.tensor([2.5, -2.5, 7.0, -3.0, 100.0])
    _learn(quantizer, mode == "lsq")
    quantizer(inputs).sum().backward()
    with torch.no_grad():
        high, low = (quantizer_of(2.0 + change)(inputs).double().sum() for change in (0.25, -0.25))
    scale = math.sqrt(len(inputs) * 127) if mode == "lsq" else 1
    assert float(quantizer._amax.grad) * scale == pytest.approx(float(high - low) / 0.5, rel=1e-5)


def test_lsq_follows_the_step_size_between_roundings() -> None:
    """With x * 127 / amax kept away from ties and the integers fixed, y = s * n: dy/ds = n; straight through, minus x / s."""
    quantizer = quantizer_of(127.0)  # s = 1
    inputs = torch.tensor([0.3, 1.2, -4.4, 90.1, -100.25])
    _learn(quantizer, True)
    quantizer(inputs).sum().backward()
    expected = (inputs.round() - inputs).sum() / 127 / math.sqrt(5 * 127)
    assert float(quantizer._amax.grad) == pytest.approx(float(expected), rel=1e-4)


def test_pact_gives_values_inside_the_range_no_say() -> None:
    quantizer = quantizer_of(2.0)
    _learn(quantizer, False)
    quantizer(torch.linspace(-2, 2, 50)).sum().backward()
    assert float(quantizer._amax.grad) == 0


@pytest.mark.parametrize("learns_step", [True, False])
def test_straight_through_gradient_is_that_of_frozen_ranges(learns_step: bool) -> None:
    """Inside as outside, but in the one step below -amax that only the integers reach."""
    upstream, grid = values((400,), 2), torch.linspace(-5, 5, 400)
    grid = grid[(grid >= -2) | (grid < -2 * 128 / 127)]
    gradients = []
    for learned in (False, True):
        quantizer, inputs = quantizer_of(2.0), grid.clone().requires_grad_()
        if learned:
            _learn(quantizer, learns_step)
        quantizer(inputs).backward(upstream[: len(grid)])
        gradients.append(inputs.grad)
    assert torch.equal(*gradients)
    assert torch.equal(gradients[0] == 0, grid.abs() > 2)


def test_mixed_precision_keeps_the_gradient_of_amax_in_float32() -> None:
    quantizer, inputs, upstream = quantizer_of(2.0), values((64, 64)), values((64, 64), 1)
    _learn(quantizer, False)
    quantizer(inputs.bfloat16()).backward(upstream.bfloat16())
    expected = reference(inputs.bfloat16().float().numpy(), np.array(2.0), upstream.bfloat16().float().numpy(), 8)
    assert quantizer._amax.grad.dtype == torch.float32
    assert float(quantizer._amax.grad) == pytest.approx(float(expected["pact"]), rel=1e-2)


@pytest.mark.parametrize("is_on", [True, False])
def test_smoothed_inputs_are_what_is_quantized(is_on: bool) -> None:
    """SmoothQuant's scale belongs to the quantizer: it is applied once, on or off, and takes part in the gradient."""
    inputs, upstream, scale = values(), values(seed=1), torch.linspace(0.5, 2, 40)
    outputs, gradients = [], []
    for learned in (False, True):
        quantizer, x = quantizer_of(2.0), inputs.clone().requires_grad_()
        quantizer.pre_quant_scale = scale
        (quantizer.enable_quant if is_on else quantizer.disable_quant)()
        if learned:
            _learn(quantizer, False)
        outputs.append(quantizer(x))
        outputs[-1].backward(upstream)
        gradients.append(x.grad)
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
    if is_on:
        clipped = (inputs * scale).abs() > 2
        expected = (upstream * (inputs * scale).sign())[clipped].sum()
        assert clipped.any()
        assert float(quantizer._amax.grad) == pytest.approx(float(expected), rel=1e-2)


def test_a_quantizer_that_is_off_passes_gradients_and_takes_part() -> None:
    quantizer, inputs = quantizer_of(2.0), values().requires_grad_()
    _learn(quantizer, True)
    quantizer.disable_quant()
    outputs = quantizer(inputs)
    assert torch.equal(outputs, inputs)
    assert "Unquantized" in type(outputs.grad_fn).__name__  # amax belongs to the graph: DDP waits for every parameter
    outputs.sum().backward()
    assert torch.equal(inputs.grad, torch.ones_like(inputs))
    assert quantizer._amax.grad is None
    quantizer.disable()
    assert quantizer(inputs) is inputs


def test_learned_amax_is_a_parameter_and_then_a_buffer_again() -> None:
    quantizer = quantizer_of(ROWS)
    before, kind = {k: v.clone() for k, v in quantizer.state_dict().items()}, type(quantizer)
    amax = _learn(quantizer, True)
    assert isinstance(quantizer, kind)
    assert list(dict(quantizer.named_parameters())) == ["_amax"]
    assert {k: v.tolist() for k, v in quantizer.state_dict().items()} == {k: v.tolist() for k, v in before.items()}
    quantizer.amax = torch.full((6, 1), 4.0)  # as calibration sets it
    assert amax.tolist() == [[4.0]] * 6
    _unlearn(quantizer)
    assert type(quantizer) is kind
    assert not list(quantizer.parameters())
    assert quantizer._buffers["_amax"].tolist() == [[4.0]] * 6
    assert not quantizer._amax.requires_grad


@pytest.fixture
def quantized(tiny_model: Models, tiny_batch: Callable[..., Any]) -> Callable[[str], tuple[Any, Recipe]]:
    """A quantized tiny BERT of the recipe "full" with the given ranges, each amax what a forward and the weights show."""

    def build(ranges: str, architecture: str = "bert", **qat: Any) -> tuple[Any, Recipe]:
        recipe = replace(load_recipe("full"), qat=QatSpec(ranges, **qat))
        model = tiny_model(architecture)
        quantizers = insert_quantizers(model, recipe)
        for site in encoder_sites(model):
            if site.key not in quantizers:
                continue
            if site.kind == ACTIVATION:
                quantizers[site.key].amax = torch.tensor(1.0 if site.name == "softmax_out" else 2.0)
            else:
                weight = model.get_parameter(site.parameter).detach()
                quantizers[site.key].amax = weight.abs().amax(1, keepdim=True).clamp(min=1e-3)
        return model.train(), recipe

    return build


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    optimizer.zero_grad()
    model(**batch).logits.square().sum().backward()
    optimizer.step()


def amax_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: quantizer._amax.detach().clone() for key, quantizer in model_quantizers(model).items()}


def kinds(model: Any) -> dict[str, str]:
    return {site.key: site.kind for site in encoder_sites(model)}


def test_frozen_ranges_stay(quantized: Any, tiny_batch: Any) -> None:
    model, recipe = quantized("frozen")
    before = amax_of(model)
    with apply_ranges(model, recipe) as ranges:
        assert ranges.parameters() == []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ranges.attach(optimizer)
        step(model, optimizer, tiny_batch())
    assert all(torch.equal(before[key], amax) for key, amax in amax_of(model).items())


def test_ema_averages_what_training_sees(quantized: Any, tiny_batch: Any) -> None:
    model, recipe = quantized("ema", ema_decay=0.75)
    expected = {key: amax.numpy().copy() for key, amax in amax_of(model).items()}
    seen: dict[str, float] = {}
    lengths = torch.zeros(0)

    def watch(key: str) -> Callable[..., None]:
        def look(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            magnitudes = args[0].detach().abs()
            rows = [m[..., : int(length), :].max() for m, length in zip(magnitudes, lengths, strict=True)]
            seen[key] = max(seen.get(key, 0.0), *map(float, rows))

        return look

    activations = {key for key, kind in kinds(model).items() if kind == ACTIVATION} & expected.keys()
    with apply_ranges(model, recipe) as ranges:
        quantizers = model_quantizers(model)
        for key in activations:
            quantizers[key].register_forward_pre_hook(watch(key))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        ranges.attach(optimizer)
        for number in range(3):
            seen.clear()
            for batch in (2 * number, 2 * number + 1):  # two batches a step: the larger of them counts
                inputs = tiny_batch(seed=batch)
                lengths = inputs["attention_mask"].sum(1)
                model(**inputs).logits.square().sum().backward()
            optimizer.step()
            for key, largest in seen.items():
                if not key.endswith("softmax_out"):
                    expected[key] = 0.75 * expected[key] + 0.25 * largest
    for key in activations:
        np.testing.assert_allclose(model_quantizers(model)[key]._amax, expected[key], rtol=1e-5, err_msg=key)
    assert {float(model_quantizers(model)[key]._amax) for key in activations if "softmax" in key} == {1.0}


def test_weights_take_their_largest_magnitude_after_each_step(quantized: Any, tiny_batch: Any) -> None:
    for mode in ("ema", "pact"):
        model, recipe = quantized(mode)
        before = amax_of(model)
        with apply_ranges(model, recipe) as ranges:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            ranges.attach(optimizer)
            step(model, optimizer, tiny_batch())
            moved = 0
            for site in encoder_sites(model):
                if site.key in before and site.kind != ACTIVATION:
                    largest = np.abs(model.get_parameter(site.parameter).detach().numpy()).max(1, keepdims=True)
                    amax = model_quantizers(model)[site.key]._amax.numpy()
                    np.testing.assert_array_equal(amax[largest > 0], largest[largest > 0], err_msg=site.key)
                    assert (amax > 0).all()  # the padding's row is all zeros and keeps its range
                    moved += not np.array_equal(amax, before[site.key].numpy())
            assert moved > 10


def test_weights_with_a_tighter_range_keep_it(quantized: Any, tiny_batch: Any) -> None:
    model, recipe = quantized("ema")
    sites = {**recipe.sites, "query.weight": QuantizerSpec(axis=0, calibrator="mse")}
    before = amax_of(model)
    with apply_ranges(model, replace(recipe, sites=sites)) as ranges:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        ranges.attach(optimizer)
        step(model, optimizer, tiny_batch())
    after = amax_of(model)
    assert torch.equal(before["layer.0.query.weight"], after["layer.0.query.weight"])
    assert not torch.equal(before["layer.0.key.weight"], after["layer.0.key.weight"])


def test_evaluation_is_not_observed(quantized: Any, tiny_batch: Any) -> None:
    model, recipe = quantized("ema")
    with apply_ranges(model, recipe) as ranges:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        ranges.attach(optimizer)
        before = amax_of(model)
        model.eval()(**tiny_batch())
        optimizer.step()
        after, kind = amax_of(model), kinds(model)
        assert [key for key in after if kind[key] == ACTIVATION and not torch.equal(before[key], after[key])] == []


def test_an_overflow_does_not_stay_in_the_average() -> None:
    quantizer = quantizer_of(2.0)
    ranges = Ranges.__new__(Ranges)
    ranges.decay, ranges._observed = 0.5, [quantizer]
    for value, expected in ((float("inf"), 2.0), (float("nan"), 2.0), (4.0, 3.0)):
        quantizer._seen = torch.tensor(value)
        ranges._average()
        assert float(quantizer.amax) == expected


@pytest.mark.parametrize("mode", ["lsq", "pact"])
def test_learned_sites(mode: str, quantized: Any, tiny_batch: Any, architecture: str) -> None:
    """lsq learns all ranges but the fixed one, pact those of activations; all get a gradient; state dicts keep their keys."""
    model, recipe = quantized(mode, architecture)
    keys = list(model.state_dict())
    with apply_ranges(model, recipe) as ranges:
        assert sorted(model.state_dict()) == sorted(keys)
        learned = {key for key, q in model_quantizers(model).items() if "_amax" in q._parameters}
        expected = {key for key in amax_of(model) if "softmax_out" not in key}
        if mode == "pact":
            expected = {key for key in expected if kinds(model)[key] == ACTIVATION}
        assert learned == expected
        assert len(ranges.parameters()) == len(learned)
        batch = tiny_batch(architecture)
        model(**batch).logits.square().sum().backward()
        assert [key for key in learned if model_quantizers(model)[key]._amax.grad is None] == []
    assert list(model.state_dict()) == keys
    assert not any("_amax" in name for name, _ in model.named_parameters())


def test_the_optimizers_step_is_relative_to_the_range() -> None:
    """Ranges a thousand times apart move by the same share: amax <- amax * exp(-rate * sign of the gradient) at first."""
    small, large = quantizer_of(0.05), quantizer_of(50.0)
    ranges = Ranges.__new__(Ranges)
    ranges._learned, ranges._observed, ranges._followed, ranges._handles = [small, large], [], [], []
    for quantizer in (small, large):
        _learn(quantizer, True)
    optimizer = torch.optim.AdamW(ranges.parameters(), lr=0.01, weight_decay=0.0)
    ranges.attach(optimizer)
    small._amax.grad, large._amax.grad = torch.tensor(0.3), torch.tensor(-7.0)
    optimizer.step()
    assert float(small.amax.detach()) == pytest.approx(0.05 * math.exp(-0.01), rel=1e-5)
    assert float(large.amax.detach()) == pytest.approx(50.0 * math.exp(0.01), rel=1e-5)
    for _ in range(5):  # however hard it is pushed down, a range stays above zero
        optimizer.param_groups[0]["lr"] = 40.0
        small._amax.grad = torch.tensor(1.0)
        optimizer.step()
    assert float(small.amax.detach()) == pytest.approx(SMALLEST)


def test_a_copy_learns_on_its_own(quantized: Any, tiny_batch: Any) -> None:
    for mode in ("lsq", "ema"):
        model, recipe = quantized(mode)
        with apply_ranges(model, recipe) as ranges:
            twin = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            ranges.attach(optimizer)
            before = amax_of(twin)
            batch = tiny_batch()
            torch.manual_seed(0)
            ours = model(**batch).logits
            torch.manual_seed(0)
            assert torch.equal(ours, twin(**batch).logits)
            step(model, optimizer, batch)
            assert all(torch.equal(before[key], amax) for key, amax in amax_of(twin).items())
            assert any(not torch.equal(before[key], amax) for key, amax in amax_of(model).items())


def test_everything_is_put_back_after_an_error(quantized: Any, tiny_batch: Any) -> None:
    for mode in ("lsq", "pact", "ema"):
        model, recipe = quantized(mode)
        classes = [type(q) for q in model_quantizers(model).values()]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        with contextlib.suppress(KeyboardInterrupt), apply_ranges(model, recipe) as ranges:
            ranges.attach(optimizer)
            raise KeyboardInterrupt
        assert [type(q) for q in model_quantizers(model).values()] == classes
        assert not any(q._forward_pre_hooks for q in model_quantizers(model).values())
        assert not any(hasattr(q, "_seen") or hasattr(q, "_batch") for q in model_quantizers(model).values())
        assert not model._forward_pre_hooks
        before = amax_of(model)
        step(model, optimizer, tiny_batch())  # the optimizer's hooks are gone, too
        assert all(torch.equal(before[key], amax) for key, amax in amax_of(model).items())
