"""SmoothQuant (Xiao et al., arXiv 2211.10438): outlier channels of activations are moved into the weights.

X W^T = (X / s) (W s)^T for any s > 0, one per input channel; section 4.1 takes s_j = max|X_j|^alpha / max|W_j|^(1-alpha).
That paper folds 1 / s into the LayerNorm before. BERT adds its LayerNorm's output to the residual too, so here the
quantizer multiplies by 1 / s (ModelOpt's `pre_quant_scale`, a Mul in the ONNX graph), and the weights keep s. Every s is
rounded to a power of two.

The residual stream has outlier channels too, the same few in every layer (MiniLM: one of 384 reaches 194 where the median
channel reaches 1.2), and no linear behind its Adds to take an s. There, branch / s + skip / s is added up and multiplied by s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from q8trt.errors import QuantizationError
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.observation import Batch, check_finite, observe
from q8trt.quantization.sites import encoder_sites

#: Input of the linears behind a LayerNorm -> the weights that read it.
SMOOTHED = {
    "qkv_input": ("query.weight", "key.weight", "value.weight"),
    "ffn_input": ("ffn_intermediate.weight",),
}


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """Return the nearest power of two, by ratio, within 2^-13 and 2^13: FP16 holds it and its inverse.

    Dividing by one and multiplying by it again is exact, so that smoothing alone changes no result by a bit.
    """
    return torch.exp2(scale.log2().round().clamp(-13, 13))


def smoothing(activations: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), as a power of two; 1 for channels that are always zero.

    Args:
        activations: float (H,): the largest magnitude of each channel of X.
        weights: float (out, H).
        alpha: share of the difficulty that moves into the weights, in [0, 1].
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
    """Return the largest magnitude of each channel, the last axis, of what reaches the `watched` sites: float (H,)."""
    maxima: dict[str, torch.Tensor] = {}

    def see(key: str, tensor: torch.Tensor) -> None:
        largest = tensor.abs().flatten(0, -2).amax(0)
        maxima[key] = torch.maximum(maxima[key], largest) if key in maxima else largest

    observe(model, quantizers, watched, batches, see, on_batch)
    return maxima


@torch.no_grad()
def smooth(
    model: nn.Module,
    batches: Iterable[Batch],
    alpha: float,
    on_batch: Callable[[Batch], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Smooth the inputs of the linears behind a LayerNorm, in place: weights are multiplied, quantizers divide.

    With quantizers off, the model computes what it did, to the bit. A site that is smoothed already stays as it is, so that
    calibrating again changes nothing.

    Args:
        model: quantized, in evaluation mode, its quantizers enabled.
        batches: keyword arguments of the model; one pass over them.
        alpha: see `smoothing`.
        on_batch: called after each batch.

    Returns:
        site key -> s, float (H,), of the sites smoothed now.

    Raises:
        QuantizationError: the library's quantizers have no pre_quant_scale, a site saw no data, or carries NaN.
    """
    quantizers, sites = model_quantizers(model), {site.key: site for site in encoder_sites(model)}
    watched = [key for key in quantizers if sites[key].name in SMOOTHED and not _is_smoothed(key, quantizers[key])]
    if not watched:
        return {}
    scales = {}
    for key, largest in channel_maxima(model, quantizers, watched, batches, on_batch).items():
        readers = [key.removesuffix(sites[key].name) + name for name in SMOOTHED[sites[key].name]]
        weights = [model.get_parameter(sites[reader].parameter) for reader in readers]
        for reader, weight in zip(readers, weights, strict=True):
            check_finite(reader, weight)
        scale = smoothing(largest, torch.cat([*weights]), alpha)
        for weight in weights:
            weight.mul_(scale)
        quantizers[key].pre_quant_scale = 1 / scale
        scales[key] = scale
    _check_seen(watched, scales)
    return scales


#: Both inputs of a residual Add.
_RESIDUALS = ("attention_residual", "ffn_residual")


def residual_smoothing(maxima: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s_j = max|X_j|^alpha, as a power of two; 1 for channels that are always zero.

    Args:
        maxima: float (H,): the largest magnitude of each channel, over both inputs.
        alpha: 0 changes nothing, 1 gives all channels one range.
    """
    return power_of_two(torch.where(maxima > 0, maxima**alpha, 1.0))


@torch.no_grad()
def smooth_residuals(
    model: nn.Module,
    batches: Iterable[Batch],
    alpha: float,
    on_batch: Callable[[Batch], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Let both inputs of each residual Add be quantized after a division by s, and their sum be multiplied by it, in place.

    With quantizers off, the model computes what it did, to the bit. An Add of which not both inputs are quantized, or that
    is smoothed already, stays as it is.

    `alpha` is that of `residual_smoothing`, the other arguments are as in `smooth`.

    Returns:
        ``"layer.0.ffn_residual"`` -> s, float (H,), of the Adds smoothed now.

    Raises:
        QuantizationError: as `smooth`.
    """
    quantizers = model_quantizers(model)
    adds = [key.removesuffix(".branch") for key in quantizers if key.endswith(tuple(f"{r}.branch" for r in _RESIDUALS))]
    pairs = {add: (f"{add}.branch", f"{add}.skip") for add in adds if f"{add}.skip" in quantizers}
    pairs = {add: pair for add, pair in pairs.items() if not _is_smoothed(pair[0], quantizers[pair[0]])}
    if not pairs:
        return {}
    watched = [key for pair in pairs.values() for key in pair]
    maxima = channel_maxima(model, quantizers, watched, batches, on_batch)
    _check_seen(watched, maxima)
    scales = {}
    for add, pair in pairs.items():
        scales[add] = residual_smoothing(torch.maximum(*(maxima[key] for key in pair)), alpha)
        for key in pair:
            quantizers[key].pre_quant_scale = 1 / scales[add]
    return scales


def _check_seen(watched: Iterable[str], seen: Mapping[str, torch.Tensor]) -> None:
    missing = [key for key in watched if key not in seen]
    if missing:
        raise QuantizationError(f"{missing[0]} was not smoothed: no batch reached it; give more calibration data")


def _is_smoothed(key: str, quantizer: Any) -> bool:
    if not hasattr(type(quantizer), "pre_quant_scale"):
        raise QuantizationError(
            f"{key}: SmoothQuant needs a quantizer with a pre_quant_scale, which this library's "
            f"{type(quantizer).__name__} has not; use --quantizer modelopt, or drop smoothquant and smooth_residuals from "
            "the recipe"
        )
    return quantizer.pre_quant_scale is not None
