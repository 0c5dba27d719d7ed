"""Massive activations, as base-size models have them: one channel far beyond the others, at the special tokens alone.

One scale for a tensor then leaves a step too wide for what the other channels hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from q8trt.quantization.calibration import Statistics
from q8trt.quantization.choice import choose
from q8trt.quantization.drift import drift
from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.smoothquant import channel_maxima
from q8trt.quantization.spreads import measure_spreads, wide_sites

#: The channel of the residual, and the one behind GELU that makes it massive.
CHANNEL, SOURCE = 7, 11
#: Beside the median channel's range.
FACTOR = 1000
CLS, SEP = 2, 3
NAIVE = {"activations": {"calibrator": "max"}, "smoothquant": None, "smooth_gelu": None, "smooth_residuals": None}


def massive_model(tiny_model: Callable[..., Any]) -> Any:
    """Return a model whose first layer answers [CLS] and [SEP] by one massive channel, which later layers hardly read.

    A direction of the embeddings that only these tokens have switches one channel behind GELU on, and its weight makes one
    channel of the feed-forward output FACTOR times the median one.
    """
    model = tiny_model("bert", num_labels=4)
    with torch.no_grad():
        embeddings, (first, second) = model.bert.embeddings, model.bert.encoder.layer
        flag = 0
        embeddings.word_embeddings.weight[:, flag] = -0.5
        embeddings.word_embeddings.weight[[CLS, SEP], flag] = 6.0
        first.attention.output.dense.weight[flag] *= 0.01
        first.intermediate.dense.weight[SOURCE] = 0.0
        first.intermediate.dense.weight[SOURCE, flag] = 20.0
        first.intermediate.dense.bias[SOURCE] = -20.0
        first.output.dense.weight[:, SOURCE] = 0.0
        first.output.dense.weight[CHANNEL, SOURCE] = 40.0
        first.output.LayerNorm.weight[CHANNEL] = 0.1
        for linear in (second.attention.self.query, second.attention.self.key, second.attention.self.value):
            linear.weight[:, CHANNEL] *= 0.01
    return model


@pytest.fixture
def rows(tiny_batch: Callable[..., Any]) -> tuple[list[Any], list[Any]]:
    """Rows to calibrate on and others to compare on, from [CLS] to [SEP]."""
    batches = [tiny_batch(shape=(8, 17), seed=seed) for seed in range(8)]
    for batch in batches:
        last = batch["attention_mask"].sum(1) - 1
        batch["input_ids"][:, 0] = CLS
        batch["input_ids"][torch.arange(8), last] = SEP
    return batches[:4], batches[4:]


def test_the_model_has_them(tiny_model: Callable[..., Any], rows: tuple[list[Any], list[Any]]) -> None:
    model, recipe = massive_model(tiny_model), load_recipe("full")
    insert_quantizers(model, recipe)
    model.eval()
    maxima = channel_maxima(
        model, model_quantizers(model), ["layer.0.ffn_residual.branch", "layer.0.gelu_out"], rows[0]
    )
    branch = maxima["layer.0.ffn_residual.branch"]
    assert int(branch.argmax()) == CHANNEL
    assert branch.max() > FACTOR * branch.median()
    assert maxima["layer.0.gelu_out"].max() > 20 * maxima["layer.0.gelu_out"].median()


@pytest.mark.parametrize("name", ["full", "gpu"])
def test_packaged_recipes_hold_where_naive_int8_does_not(
    name: str, tiny_model: Callable[..., Any], rows: tuple[list[Any], list[Any]]
) -> None:
    drifts = {}
    full = load_recipe("full").to_dict()
    naive = Recipe.from_dict({**full, "alternatives": [], "sites": _by_max(full["sites"]), **NAIVE, "qat": {}})
    for recipe in (naive, load_recipe(name)):
        model = massive_model(tiny_model)
        with torch.no_grad():
            reference = torch.cat([model(**batch).logits for batch in rows[1]]).double()
        insert_quantizers(model, recipe)
        choose(Statistics(model, recipe.candidates, rows[0]), recipe.candidates, rows[1])
        with torch.no_grad():
            drifts[recipe is naive] = drift(torch.cat([model(**batch).logits for batch in rows[1]]).double(), reference)
    assert drifts[True] > 0.5
    assert drifts[False] < 0.02


def test_wide_sites_are_named_with_their_remedy(
    tiny_model: Callable[..., Any], rows: tuple[list[Any], list[Any]]
) -> None:
    full = {**load_recipe("full").to_dict(), "alternatives": [], "qat": {}}
    lines, measured = {}, {}
    for alpha in (None, 0.75):
        recipe, model = Recipe.from_dict({**full, "smooth_residuals": alpha}), massive_model(tiny_model)
        insert_quantizers(model, recipe)
        lines[alpha] = wide_sites(Statistics(model, [recipe], rows[0]).calibrate(recipe).spreads)
        measured[alpha] = measure_spreads(model, rows[1])
    [line] = [line for line in lines[None] if "smooth_residuals" in line]
    assert "layer.0.ffn_residual.branch" in line
    assert not [line for line in lines[0.75] if "smooth_residuals" in line]
    # A calibrated model's own, on other rows, as the parity check measures them.
    assert wide_sites(measured[None])
    assert [line.split(";")[2] for line in wide_sites(measured[0.75])] == [line.split(";")[2] for line in lines[0.75]]


def _by_max(sites: Any) -> dict[str, Any]:
    return {key: {**spec, "calibrator": "max"} if spec["calibrator"] == "mse" else spec for key, spec in sites.items()}
