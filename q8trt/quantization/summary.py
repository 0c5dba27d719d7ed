"""A summary of a recipe's effect on a model: the number of quantized sites, and the other sites with their reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from q8trt.quantization.recipe import Recipe
from q8trt.quantization.sites import GROUPS, SITE_KINDS, Site, encoder_sites

if TYPE_CHECKING:
    from torch import nn


def _reason(site: Site, recipe: Recipe) -> str:
    """Return the reason why `site` stays in floating point."""
    if site.key != site.name and site.key in recipe.sites:
        return "switched off by the recipe"
    named = recipe.sites.get(site.name)
    if named is None:
        return "not in the recipe"
    return "switched off by the recipe" if not named.enabled else "the recipe leaves these layers out"


def _numbers(layers: list[int]) -> str:
    """Return numbers as ranges: ``"0-3, 5"``."""
    ranges: list[list[int]] = []
    for number in sorted(layers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in ranges)


def _names(sites: list[Site], every_layer: int) -> str:
    """Return the names of sites, or of a group if all of its sites are listed, with the layers if they are not all."""
    layers: dict[str, list[int]] = {}
    for site in sites:
        layers.setdefault(site.name, []).extend([] if site.layer is None else [site.layer])
    words = []
    for name, numbers in layers.items():
        group = name.split(".")[0]
        members = [member for member in GROUPS.get(group, ()) if layers.get(member) == numbers]
        if len(members) == len(GROUPS.get(group, (None,))):
            name = group
        word = name if len(numbers) in (0, every_layer) else f"{name} (layers {_numbers(numbers)})"
        if word not in words:
            words.append(word)
    return ", ".join(words)


def _idle_options(recipe: Recipe, quantized: set[str]) -> list[str]:
    """Return a line for each option of the recipe that applies to no site."""
    pairs = [{f"{add}.branch", f"{add}.skip"} for add in ("attention_residual", "ffn_residual")]
    idle = []
    if recipe.smoothquant is not None and not quantized & {"qkv_input", "ffn_input"}:
        idle.append("  smoothquant does nothing: neither qkv_input nor ffn_input is quantized")
    if recipe.smooth_gelu is not None and "gelu_out" not in quantized:
        idle.append("  smooth_gelu does nothing: gelu_out is not quantized")
    if recipe.smooth_residuals is not None and not any(pair <= quantized for pair in pairs):
        idle.append("  smooth_residuals does nothing: no residual Add has both its inputs quantized")
    return idle


def summary_lines(model: nn.Module, recipe: Recipe) -> list[str]:
    """Return the number of quantized sites, and the other sites with their reasons, as lines for the terminal.

    Args:
        model: a model of the BERT family, quantized or not.
        recipe: the recipe of the model, or one to try.
    """
    sites = encoder_sites(model)
    quantized = [site for site in sites if recipe.spec(site)]
    every_layer = 1 + max((site.layer for site in sites if site.layer is not None), default=-1)
    lines = [f"recipe {recipe.name}: {len(quantized)} of {len(sites)} sites quantized"]
    reasons: dict[str, list[Site]] = {}
    for site in sites:
        if not recipe.spec(site):
            reasons.setdefault(_reason(site, recipe), []).append(site)
    lines += [f"  in float: {_names(group, every_layer)}: {reason}" for reason, group in reasons.items()]
    absent = [name for name in SITE_KINDS if name in recipe.sites and name not in {site.name for site in sites}]
    if absent:
        lines.append(f"  the model has no {', '.join(absent)}")
    lines += _idle_options(recipe, {site.name for site in quantized})
    lines.append(
        "  in float: LayerNorm, softmax, GELU and the Add of the mask, which TensorRT computes in floating point"
    )
    return lines
