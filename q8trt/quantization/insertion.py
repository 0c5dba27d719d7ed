"""Puts TensorQuantizers at a recipe's sites.

A fake-quantized tensor is x_q = clamp(round(x * s), -128, 127) / s with s = 127 / amax: the values that INT8 would
hold, in floating point, with straight-through gradients inside the range (Q8BERT, arXiv 1910.06188, section 2). The
quantizer itself is NVIDIA ModelOpt's `TensorQuantizer`, heir of pytorch-quantization's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from q8trt.errors import QuantizationError
from q8trt.quantization.recipe import QuantizerSpec, Recipe
from q8trt.quantization.sites import ACTIVATION, Site, encoder_sites

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer


class QuantLinear(nn.Linear):
    """A linear whose weight, and input where a site says so, pass through a quantizer. Parameters keep their names."""

    input_quantizer: Callable[[torch.Tensor], torch.Tensor] | None
    weight_quantizer: Callable[[torch.Tensor], torch.Tensor] | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        weight: torch.Tensor = self.weight
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer(weight)
        return nn.functional.linear(input, weight, self.bias)


def _quantize_first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Forward pre-hook of a self-attention module: one quantizer on what Q, K and V all read."""
    quantizer: Any = module.input_quantizer
    return (quantizer(args[0]), *args[1:]), kwargs


def new_quantizer(spec: QuantizerSpec) -> TensorQuantizer:
    """An uncalibrated ModelOpt TensorQuantizer for `spec`: signed, symmetric, fake, over the full range [-128, 127].

    TensorRT clamps to [-128, 127], so `narrow_range` is off (TensorRT documentation, "Working with Quantized Types").
    """
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer

    calibrator = "max" if spec.calibrator == "max" else "histogram"
    attributes = QuantizerAttributeConfig(
        num_bits=spec.num_bits,
        axis=spec.axis,
        calibrator=calibrator,
        narrow_range=False,
        pass_through_bwd=False,  # ModelOpt's default lets gradients through to clipped values too
    )
    return TensorQuantizer(attributes)


def _place(model: nn.Module, site: Site, quantizer: nn.Module) -> None:
    module = model.get_submodule(site.module)
    if isinstance(module, nn.Linear):
        if not isinstance(module, QuantLinear):
            module.__class__ = QuantLinear
            module.register_module("input_quantizer", None)
            module.register_module("weight_quantizer", None)
    elif site.kind == ACTIVATION:
        module.register_forward_pre_hook(_quantize_first_argument, with_kwargs=True)
    else:
        raise QuantizationError(f"{site.key}: {site.module} is a {type(module).__name__}, expected a linear")
    setattr(module, site.quantizer.rpartition(".")[2], quantizer)


def insert_quantizers(model: nn.Module, recipe: Recipe) -> dict[str, TensorQuantizer]:
    """Put a quantizer at each of the recipe's sites, in place.

    Args:
        model: a transformers model of the BERT family, in float; linears become `QuantLinear`, parameters are shared.
        recipe: what to quantize.

    Returns:
        site key ("layer.0.qkv_input") -> its quantizer, uncalibrated, in the order of computation.

    Raises:
        CheckpointError: the model is not of the BERT family.
        QuantizationError: the model carries quantizers already.
    """
    if model_quantizers(model):
        raise QuantizationError("the model is quantized already; start from its floating-point checkpoint")
    for site in encoder_sites(model):
        if site.name in recipe.sites:
            _place(model, site, new_quantizer(recipe.sites[site.name]))
    return model_quantizers(model)


def model_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Site key -> quantizer, for the quantizers that `model` carries, in the order of computation."""
    modules = dict(model.named_modules())
    return {site.key: modules[site.quantizer] for site in encoder_sites(model) if site.quantizer in modules}


def set_quantization(model: nn.Module, enabled: bool) -> None:
    """Switch every quantizer on or off; off, the model computes exactly what its floating-point original does."""
    for quantizer in model_quantizers(model).values():
        if enabled:
            quantizer.enable()
        else:
            quantizer.disable()
