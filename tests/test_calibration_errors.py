"""Errors of calibration, whose messages name the site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_calibration import FULL, LINEAR, recipe_of, switches

from q8trt.errors import ConfigError, QuantizationError
from q8trt.quantization.calibration import calibrate, check_amax
from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.libraries import ModelOpt


@pytest.fixture
def batches(tiny_batch: Callable[..., Any]) -> list[dict[str, torch.Tensor]]:
    return [tiny_batch("bert", (3, 17), seed) for seed in range(4)]


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model()


def test_another_recipe_than_the_models(model: Any, batches: list[Any]) -> None:
    insert_quantizers(model, FULL)
    with pytest.raises(
        QuantizationError,
        match=r"^embeddings\.word has a quantizer, but the recipe 'linear' leaves it in floating point; calibrate with the "
        r"recipe of the model's quantizers$",
    ):
        calibrate(model, LINEAR, batches)


def test_a_librarys_refusal_comes_before_any_work(model: Any) -> None:
    class Poor(ModelOpt):
        def new_calibrator(self, spec: Any) -> Any:
            raise ConfigError("no such calibrator")

    def never() -> Iterator[Any]:
        raise AssertionError
        yield

    insert_quantizers(model, LINEAR)
    with pytest.raises(ConfigError, match="no such calibrator"):
        calibrate(model, LINEAR, never(), library=Poor())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(model: Any, batches: list[Any], value: float) -> None:
    model.bert.encoder.layer[1].intermediate.dense.weight.data[3, 4] = value
    insert_quantizers(model, LINEAR)
    with pytest.raises(QuantizationError, match=r"^layer\.1\.ffn_intermediate\.weight has NaN or infinity"):
        calibrate(model, LINEAR, batches)


@pytest.mark.parametrize("calibrator", ["max", "percentile"])
def test_activations_that_are_not_finite_are_named(model: Any, batches: list[Any], calibrator: str) -> None:
    model.bert.encoder.layer[0].intermediate.dense.bias.data[0] = float("nan")
    recipe = recipe_of(calibrator=calibrator)
    insert_quantizers(model, recipe)
    with pytest.raises(QuantizationError, match=r"^layer\.0\.gelu_out has NaN or infinity; check the checkpoint"):
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
