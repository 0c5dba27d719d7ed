"""The summary of a recipe, word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.sites import encoder_sites
from q8trt.quantization.summary import summary_lines

FLOAT = "  in float: LayerNorm, softmax, GELU and the Add of the mask, which TensorRT computes in floating point"


def test_full(tiny_model: Callable[..., Any]) -> None:
    assert summary_lines(tiny_model(), load_recipe("full")) == [
        "recipe full: 39 of 43 sites quantized",
        "  in float: pooler, classifier: not in the recipe",
        FLOAT,
    ]


def test_an_architecture_without_token_types(tiny_model: Callable[..., Any]) -> None:
    lines = summary_lines(tiny_model("distilbert"), load_recipe("full"))
    assert lines[0] == "recipe full: 38 of 42 sites quantized"
    assert "  the model has no embeddings.token_type" in lines


def test_reasons(tiny_model: Callable[..., Any]) -> None:
    sites: dict[str, Any] = {
        "gelu_out": {"layers": [0, 2, 3]},
        "bmm_v": {"enabled": False},
        "context": {},
        "layer.1.context": {"enabled": False},
        "embeddings": {},
        "embeddings.word": {"enabled": False},
    }
    model = tiny_model(num_hidden_layers=4)
    recipe = Recipe.from_dict({"name": "mine", "sites": sites})
    lines = summary_lines(model, recipe)
    assert lines[0] == f"recipe mine: 8 of {len(encoder_sites(model))} sites quantized"
    assert "  in float: embeddings.word, bmm_v, context (layers 1): switched off by the recipe" in lines
    assert "  in float: gelu_out (layers 1): the recipe leaves these layers out" in lines
    assert any(line.endswith(": not in the recipe") and "attention_residual" in line for line in lines)


@pytest.mark.parametrize("name", ["linear", "attention", "gpu", "full", "q8bert"])
def test_every_site_is_accounted_for(name: str, architecture: str, tiny_model: Callable[..., Any]) -> None:
    model, recipe = tiny_model(architecture), load_recipe(name)
    quantized = sum(recipe.spec(site) is not None for site in encoder_sites(model))
    lines = summary_lines(model, recipe)
    assert lines[0] == f"recipe {name}: {quantized} of {len(encoder_sites(model))} sites quantized"


def test_options_without_a_site(tiny_model: Callable[..., Any]) -> None:
    idle = {"name": "idle", "smoothquant": 0.5, "smooth_residuals": 1.0, "sites": {"ffn_residual.skip": {}}}
    lines = summary_lines(tiny_model(), Recipe.from_dict(idle))
    assert "  smoothquant does nothing: neither qkv_input nor ffn_input is quantized" in lines
    assert "  smooth_residuals does nothing: no residual Add has both its inputs quantized" in lines
    busy = {**idle, "sites": {"ffn_residual": {}, "ffn_input": {}}}
    assert not any("does nothing" in line for line in summary_lines(tiny_model(), Recipe.from_dict(busy)))
