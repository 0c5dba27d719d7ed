"""Calibrators: the ranges they answer, against NumPy, ModelOpt and brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from q8trt.errors import ConfigError
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.calibrators import (
    CALIBRATORS,
    EMA_DECAY,
    EmaCalibrator,
    MaxCalibrator,
    Method,
    WeightMseCalibrator,
)
from q8trt.quantization.histogram import BINS
from q8trt.quantization.insertion import insert_quantizers
from q8trt.quantization.libraries import MODELOPT
from q8trt.quantization.recipe import QuantizerSpec, Recipe

HISTOGRAMS = ("percentile", "entropy", "mse", "search")
COLLECTING = tuple(name for name in CALIBRATORS if name != "fixed")


def batches(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 17, 32, generator=generator) * (1 + number % 5) for number in range(count)]


def amax_of(tensors: list[torch.Tensor], **spec: Any) -> torch.Tensor:
    calibrator = MODELOPT.new_calibrator(QuantizerSpec(**spec))
    for tensor in tensors:
        calibrator.collect(tensor)
    amax = calibrator.compute_amax()
    assert amax is not None
    assert amax.dtype == torch.float32
    return amax


def fake_quantized(weight: np.ndarray, amax: np.ndarray | float, num_bits: int) -> np.ndarray:
    levels = 2 ** (num_bits - 1)
    scale = np.asarray(amax, np.float64) / (levels - 1)
    return np.clip(np.round(weight / scale), -levels, levels - 1) * scale


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("shape", [(5, 7), (5, 1), (5, 3, 2)])
def test_max_is_modelopts(axis: int | None, shape: tuple[int, ...]) -> None:
    from modelopt.torch.quantization.calib import MaxCalibrator

    theirs = MaxCalibrator(num_bits=8, axis=axis)
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for tensor in tensors:
        theirs.collect(tensor)
    ours = amax_of(tensors, calibrator="max", axis=axis)
    assert torch.equal(ours, theirs.compute_amax())
    assert ours.shape == theirs.compute_amax().shape


def test_ema_is_a_weighted_mean_of_the_batches_maxima() -> None:
    """The weights are decay^(age), whatever the first batch was."""
    maxima = np.array([float(batch.abs().max()) for batch in batches(12)])
    weights = EMA_DECAY ** np.arange(12)[::-1]
    amax = amax_of(batches(12), calibrator="ema")
    assert float(amax) == pytest.approx((maxima * weights).sum() / weights.sum(), rel=1e-6)
    assert amax_of(batches(1), calibrator="ema") == batches(1)[0].abs().max()
    assert maxima.min() < amax < maxima.max()


def test_ema_forgets_at_its_decay() -> None:
    calibrator = EmaCalibrator(decay=0.5)
    for value in (8.0, -2.0, 1.0):
        calibrator.collect(torch.tensor([value, 0.0]))
    assert calibrator.compute_amax() == pytest.approx((0.25 * 8 + 0.5 * 2 + 1) / 1.75)


@pytest.mark.parametrize("percentile", [90.0, 99.9, 100.0])
def test_percentile_is_numpys(percentile: float) -> None:
    values = torch.cat(batches(6)).abs().numpy()
    exact = np.percentile(values, percentile, method="inverted_cdf")
    amax = float(amax_of(batches(6), calibrator="percentile", percentile=percentile))
    assert exact <= amax <= exact + values.max() * 2 / BINS


def test_search_answers_its_start() -> None:
    assert amax_of(batches(6), calibrator="search") == amax_of(batches(6), calibrator="percentile", percentile=99.99)


@pytest.mark.parametrize(("calibrator", "bound"), [("percentile", 24), ("entropy", 20), ("mse", 270), ("max", 301)])
def test_how_far_one_outlier_of_32000_is_clipped(calibrator: str, bound: float) -> None:
    amax = amax_of([*batches(20), torch.tensor([[[300.0]]])], calibrator=calibrator)
    assert bound * 0.7 < amax < bound


@pytest.mark.parametrize("calibrator", COLLECTING)
def test_nothing_collected_is_none(calibrator: str) -> None:
    assert MODELOPT.new_calibrator(QuantizerSpec(calibrator=calibrator)).compute_amax() is None


@pytest.mark.parametrize("calibrator", COLLECTING)
def test_only_zeros_is_zero(calibrator: str) -> None:
    assert amax_of([torch.zeros(3, 4)] * 2, calibrator=calibrator) == 0


@pytest.mark.parametrize("calibrator", HISTOGRAMS)
def test_memory_does_not_grow(calibrator: str) -> None:
    made: Any = MODELOPT.new_calibrator(QuantizerSpec(calibrator=calibrator))
    sizes = []
    for batch in batches(50):
        made.collect(batch * 1.3 ** len(sizes))
        sizes.append(made.histogram.counts.untyped_storage().nbytes())
    assert (sizes[0], sizes[-1], len(set(sizes))) == (BINS * 8, BINS * 8, 1)


@pytest.mark.parametrize("calibrator", COLLECTING)
def test_collecting_changes_nothing(calibrator: str) -> None:
    tensor = batches(1)[0].requires_grad_()
    before = tensor.detach().clone()
    assert not amax_of([tensor], calibrator=calibrator).requires_grad
    assert torch.equal(tensor.detach(), before)


def weight(rows: int = 6) -> torch.Tensor:
    """Rows of different sizes, one with an outlier below zero, one all zero."""
    values = torch.randn(rows, 200, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 2, rows)[:, None]
    values[1, 5] = -9 * values[1].abs().max()
    values[2] = 0
    return values


@pytest.mark.parametrize(("num_bits", "tolerance"), [(8, 1.25), (4, 1.05), (2, 1.02)])
def test_weight_mse_per_row_is_the_best(num_bits: int, tolerance: float) -> None:
    """Nearly: with 8 bits, the error of 200 values has a hundred local minima, by where the values lie on the grid."""
    values = weight().numpy().astype(np.float64)
    amax = amax_of([weight()], calibrator="mse", axis=0, num_bits=num_bits)
    assert amax.shape == (6, 1)
    assert amax[2] == 0
    for row, found in zip(values, amax[:, 0].tolist(), strict=True):
        if not row.any():
            continue
        largest = np.abs(row).max()
        assert 0 < found <= np.float32(largest)
        candidates = np.geomspace(largest / 40, largest, 3000)
        errors = [np.square(fake_quantized(row, amount, num_bits) - row).sum() for amount in candidates]
        assert np.square(fake_quantized(row, found, num_bits) - row).sum() <= tolerance * min(errors)


@pytest.mark.parametrize("num_bits", [4, 2])
def test_weight_mse_per_tensor_is_the_best(num_bits: int) -> None:
    values = weight()[3:].numpy().astype(np.float64)
    found = amax_of([weight()[3:]], calibrator="mse", num_bits=num_bits)
    assert found.shape == ()
    errors = [
        np.square(fake_quantized(values, amount, num_bits) - values).sum()
        for amount in np.geomspace(np.abs(values).max() / 40, np.abs(values).max(), 3000)
    ]
    assert np.square(fake_quantized(values, float(found), num_bits) - values).sum() <= 1.02 * min(errors)


def test_two_bits_reach_further_below_zero() -> None:
    """The levels are -2, -1, 0 and 1 times amax: each of these values has one."""
    calibrator = WeightMseCalibrator(num_bits=2, axis=None)
    calibrator.collect(torch.tensor([-2.0, -1.0, 0.0, 1.0] * 5))
    assert calibrator.compute_amax() == pytest.approx(1.0, rel=0.02)
    assert amax_of([torch.tensor([-2.0, 1.0])], calibrator="max", num_bits=2) == 2


@pytest.mark.parametrize("num_bits", [8, 4, 2])
@pytest.mark.parametrize("axis", [None, 0])
def test_the_error_is_that_of_the_quantizer(num_bits: int, axis: int | None) -> None:
    """The error that the search minimizes is that of ModelOpt's TensorQuantizer."""
    spec = QuantizerSpec(num_bits=num_bits, axis=axis, calibrator="mse")
    values = weight()[3:]
    calibrator = WeightMseCalibrator(num_bits, axis)
    amax = values.abs().amax(1, keepdim=True) * 0.7 if axis == 0 else values.abs().max() * 0.7
    quantizer = MODELOPT.new_quantizer(spec)
    quantizer.amax = amax
    difference = (quantizer(values) - values).square()
    expected = difference.sum(1, keepdim=True) if axis == 0 else difference.sum()
    torch.testing.assert_close(calibrator._error(values, amax), expected, rtol=1e-4, atol=1e-9)


def test_eight_bit_tensors_have_the_same_answer_by_histogram_and_by_search() -> None:
    values = torch.cat(batches(4))
    calibrator = WeightMseCalibrator(num_bits=8, axis=None)
    calibrator.collect(values)
    assert amax_of([values], calibrator="mse") == pytest.approx(float(calibrator.compute_amax()), rel=0.03)


class _HalfCalibrator(MaxCalibrator):
    def compute_amax(self) -> Any:
        amax: Any = super().compute_amax()
        return amax / 2


def test_a_recipe_can_name_whatever_is_registered(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    ranges = {}
    for name in ("max", "half"):
        monkeypatch.setitem(
            cast(Any, CALIBRATORS), "half", Method(lambda num_bits, axis, percentile: _HalfCalibrator(axis))
        )
        recipe = Recipe.from_dict({"name": "r", "sites": {"gelu_out": {"calibrator": name}}})
        model = tiny_model()
        insert_quantizers(model, recipe)
        ranges[name] = calibrate(model, recipe, [tiny_batch()]).amax
    assert ranges["half"] == {key: amax / 2 for key, amax in ranges["max"].items()}


def test_a_fixed_range_is_not_calibrated() -> None:
    with pytest.raises(ConfigError, match=r"^no calibrator 'fixed': the recipe has the fixed range$"):
        MODELOPT.new_calibrator(replace(QuantizerSpec(), calibrator="fixed", amax=1.0))
