"""SmoothQuant (Xiao et al., arXiv 2211.10438): outlier channels of activations are scaled down, and the weights up.

X W^T = (X / s) (W s)^T for any s > 0, one per input channel. Section 4.1 uses s_j = max|X_j|^alpha / max|W_j|^(1-alpha).
The paper folds 1 / s into the LayerNorm before the linear. In BERT, the residual also reads the LayerNorm's output, so here the
quantizer multiplies by 1 / s (ModelOpt's `pre_quant_scale`, a Mul in the ONNX graph), and the weights are multiplied by s.
Every s is rounded to a power of two.

The residual stream also has outlier channels, the same few in every layer (MiniLM: one of 384 channels reaches 194, the median
channel 1.2). No linear after its Adds could contain s, so the model computes (branch / s + skip / s) * s. GELU's output has
outlier channels as well. There the weights of the next linear are multiplied by s, which differs from 1 only for outliers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from q8trt.errors import QuantizationError
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.observation import Batch, check_finite, observe
from q8trt.quantization.recipe import SMOOTHINGS, Recipe
from q8trt.quantization.sites import Site, encoder_sites

#: Input of linears -> their weights.
SMOOTHED = {
    "qkv_input": ("query.weight", "key.weight", "value.weight"),
    "ffn_input": ("ffn_intermediate.weight",),
    "gelu_out": ("ffn_output.weight",),
}


def alpha_of(recipe: Recipe, name: str) -> float | None:
    """Return the alpha by which `recipe` smooths the site `name`; None if it does not smooth it."""
    if "_residual." in name:
        return recipe.smooth_residuals
    if name == "gelu_out":
        return recipe.smooth_gelu
    return recipe.smoothquant if name in SMOOTHED else None


def is_smoothable(name: str) -> bool:
    """Return whether a recipe can smooth the site `name`."""
    return name in SMOOTHED or "_residual." in name


def remedy(name: str) -> str:
    """Return the option of a recipe that smooths the site `name`."""
    if "_residual." in name:
        return "smooth_residuals"
    return "smooth_gelu" if name == "gelu_out" else "smoothquant"


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """Return the nearest power of two, by ratio, from 2^-13 to 2^13; FP16 represents it and its inverse.

    Division by a power of two is exact, so smoothing alone does not change any result.
    """
    return torch.exp2(scale.log2().round().clamp(-13, 13))


def smoothing(activations: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), as a power of two; 1 for channels that are always zero.

    Args:
        activations: float (H,), the largest magnitude of each channel of X.
        weights: float (out, H).
        alpha: share of the difficulty that moves to the weights, in [0, 1].
    """
    columns = weights.abs().amax(0)
    scale = activations**alpha / columns ** (1 - alpha)
    return power_of_two(torch.where((activations > 0) & (columns > 0), scale, 1.0))


def channel_maxima(
    model: nn.Module,
    quantizers: Mapping[str, Any],
    watched: Iterable[str],
    batches: Iterable[Batch],
    on_batch: Callable[[Batch], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Return site key -> the largest magnitude of each channel (the last axis), float (H,), for the `watched` sites."""
    maxima: dict[str, torch.Tensor] = {}

    def see(key: str, tensor: torch.Tensor) -> None:
        largest = tensor.abs().flatten(0, -2).amax(0)
        maxima[key] = torch.maximum(maxima[key], largest) if key in maxima else largest

    observe(model, quantizers, watched, batches, see, on_batch)
    return maxima


def residual_smoothing(maxima: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s_j = max|X_j|^alpha, as a power of two; 1 for channels that are always zero.

    Args:
        maxima: float (H,), the largest magnitude of each channel, over both inputs.
        alpha: 0 changes nothing, 1 gives all channels the same range.
    """
    return power_of_two(torch.where(maxima > 0, maxima**alpha, 1.0))


def outlier_smoothing(maxima: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s_j = (max|X_j| / m)^alpha, as a power of two; 1 for channels below m, the median of the channels.

    GELU's output has a few channels of 70 to 100, where the median reaches 1.2 (all-mpnet-base-v2, layers 6 to 10). They are
    the massive activations of the next Add. SmoothQuant's formula, which also uses the weights, leaves most of the loss.

    Args:
        maxima: float (I,), the largest magnitude of each channel.
        alpha: 0 changes nothing, 1 gives outliers the median's range.
    """
    typical = maxima[maxima > 0].median() if (maxima > 0).any() else maxima.new_ones(())
    return power_of_two((maxima / typical).clamp(min=1) ** alpha)


def smoothable(model: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """Return the keys of the sites that `recipe` smooths and that are not yet smoothed; of an Add both inputs or none.

    Raises:
        QuantizationError: the library's quantizers have no pre_quant_scale.
    """
    quantizers = model_quantizers(model)
    keys = [
        site.key
        for site in encoder_sites(model)
        if site.key in quantizers
        and alpha_of(recipe, site.name) is not None
        and set(_pair(site.key)) <= set(quantizers)
    ]
    return tuple(key for key in keys if not _is_smoothed(key, quantizers[key]))


def _pair(key: str) -> tuple[str, ...]:
    """Return the keys of both inputs of the Add that reads the site `key`; () for a site of another kind."""
    add, _, side = key.rpartition(".")
    return (f"{add}.branch", f"{add}.skip") if side in ("branch", "skip") else ()


def smoothing_scales(model: nn.Module, recipe: Recipe, maxima: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return site key -> s, float (H,), for `smoothable(model, recipe)`; both inputs of an Add have the same s.

    Args:
        model: a quantized model.
        recipe: the recipe with the alphas of `smoothing`, `residual_smoothing` and `outlier_smoothing`.
        maxima: see `channel_maxima`, for at least these sites.

    Raises:
        QuantizationError: a site had no data, or a weight has NaN or infinity.
    """
    keys, sites = smoothable(model, recipe), {site.key: site for site in encoder_sites(model)}
    if missing := [key for key in keys if key not in maxima]:
        raise QuantizationError(f"{missing[0]} was not smoothed: no batch reached it; give more calibration data")
    scales = {}
    for key in keys:
        alpha = alpha_of(recipe, sites[key].name) or 0.0
        if pair := _pair(key):
            scales[key] = residual_smoothing(torch.maximum(*(maxima[each] for each in pair)), alpha)
            continue
        readers = _readers(model, key)
        if sites[key].name == "gelu_out":
            scales[key] = outlier_smoothing(maxima[key], alpha)
            continue
        for site in readers:
            check_finite(site.key, model.get_parameter(site.parameter))
        weights = torch.cat([model.get_parameter(site.parameter).detach() for site in readers])
        scales[key] = smoothing(maxima[key], weights, alpha)
    return scales


def _readers(model: nn.Module, key: str) -> list[Site]:
    """Return the weight sites of the linears that read the site `key`; [] for an input of an Add."""
    sites = {site.key: site for site in encoder_sites(model)}
    name = sites[key].name
    keys = [key.removesuffix(name) + reader for reader in SMOOTHED.get(name, ())]
    return [sites[reader] for reader in keys if reader in sites]


@torch.no_grad()
def smooth(model: nn.Module, scales: Mapping[str, torch.Tensor]) -> None:
    """Smooth sites in place: quantizers divide by s, and the next weights, or the sum of an Add, are multiplied by s.

    With quantizers off, no result changes.

    Args:
        model: a quantized model.
        scales: see `smoothing_scales`.
    """
    quantizers = model_quantizers(model)
    for key, scale in scales.items():
        for site in _readers(model, key):
            model.get_parameter(site.parameter).mul_(scale)
        quantizers[key].pre_quant_scale = 1 / scale


@torch.no_grad()
def unsmooth(model: nn.Module, scales: Mapping[str, torch.Tensor]) -> None:
    """Undo `smooth`, in place. This is exact, because s is a power of two."""
    quantizers = model_quantizers(model)
    for key, scale in scales.items():
        for site in _readers(model, key):
            model.get_parameter(site.parameter).div_(scale)
        del quantizers[key]._pre_quant_scale


def _is_smoothed(key: str, quantizer: Any) -> bool:
    if not hasattr(type(quantizer), "pre_quant_scale"):
        raise QuantizationError(
            f"{key}: smoothing needs a quantizer with a pre_quant_scale, which this library's "
            f"{type(quantizer).__name__} lacks; use --quantizer modelopt, or drop {', '.join(SMOOTHINGS)} from the recipe"
        )
    return quantizer.pre_quant_scale is not None
