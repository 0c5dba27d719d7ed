"""Insertion of TensorQuantizers at the sites of a recipe.

A fake-quantized tensor is x_q = clamp(round(x * s), -128, 127) / s with s = 127 / amax. It has the values of INT8 in floating
point, and straight-through gradients inside the range (Q8BERT, arXiv 1910.06188, section 2). The quantizer is NVIDIA
ModelOpt's `TensorQuantizer`, or that of its predecessor, pytorch-quantization.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from q8trt.errors import QuantizationError
from q8trt.quantization.architectures import architecture_of
from q8trt.quantization.libraries import MODELOPT, Library
from q8trt.quantization.recipe import Recipe
from q8trt.quantization.sites import WEIGHT, Site, encoder_sites

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer


def _place(model: Any, site: Site, quantizer: nn.Module) -> None:
    from q8trt.quantization.modules import BMM_SITES, quantize_first_argument, quantized_class

    module, architecture = model.get_submodule(site.module), architecture_of(model.config)
    # A module that also adds the residual reads its input twice, and only the projections must read it quantized.
    if site.name == "qkv_input" and architecture.self_attention != architecture.attention_residual:
        module.register_forward_pre_hook(quantize_first_argument, with_kwargs=True)
    elif site.name not in BMM_SITES or architecture.attention_class is not None:
        quantized = quantized_class(module, site.name, architecture)
        if quantized is None:
            raise QuantizationError(
                f"{site.key}: {site.module} is a {type(module).__name__}, which cannot have quantizers"
            )
        module.__class__ = quantized
    setattr(module, site.attribute, quantizer)


def insert_quantizers(model: nn.Module, recipe: Recipe, library: Library | None = None) -> dict[str, TensorQuantizer]:
    """Insert a quantizer at each of the recipe's sites, in place.

    Args:
        model: a floating-point transformers model of the BERT family; its parameters stay the same objects.
        recipe: the sites and their options.
        library: library of the quantizers; None for ModelOpt.

    Returns:
        site key ("layer.0.qkv_input") -> its uncalibrated quantizer, in the order of computation.

    Raises:
        CheckpointError: the model is not of the BERT family.
        ConfigError: the recipe names a layer that the model does not have.
        QuantizationError: the model already has quantizers, or the recipe quantizes none of its sites.
    """
    if model_quantizers(model):
        raise QuantizationError("the model is already quantized; start from its floating-point checkpoint")
    sites = encoder_sites(model)
    recipe.check_layers(sites)
    source: Library = library or MODELOPT
    for site in sites:
        spec = recipe.spec(site)
        if spec is not None:
            _place(model, site, source.new_quantizer(spec))
    quantizers = model_quantizers(model)
    if not quantizers:
        raise QuantizationError(f"recipe {recipe.name!r} quantizes no site of this model; see docs/architecture.md")
    if architecture_of(model.config).attention_registry and _quantizes_attention(quantizers):
        _route_attention(model, True)
    return quantizers


def _quantizes_attention(quantizers: Mapping[str, Any]) -> bool:
    from q8trt.quantization.modules import BMM_SITES

    return any(key.endswith(tuple(f".{name}" for name in BMM_SITES)) for key in quantizers)


def _route_attention(model: Any, quantized: bool) -> None:
    """Make the model's attention use its quantizers, or restore the attention that the model was loaded with."""
    from q8trt.quantization.modules import ATTENTION

    if quantized and model.config._attn_implementation != ATTENTION:
        model.float_attention = model.config._attn_implementation
        model.set_attn_implementation(ATTENTION)
    elif not quantized and hasattr(model, "float_attention"):
        model.set_attn_implementation(model.float_attention)


def model_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return site key -> quantizer for all quantizers of `model`, in the order of computation."""
    modules = dict(model.named_modules())
    return {site.key: modules[site.quantizer] for site in encoder_sites(model) if site.quantizer in modules}


def set_quantization(model: nn.Module, enabled: bool) -> None:
    """Switch every quantizer on or off. With all off, the model computes exactly what it did before quantization."""
    for quantizer in model_quantizers(model).values():
        if enabled:
            quantizer.enable()
        else:
            quantizer.disable()
    if hasattr(model, "float_attention"):
        _route_attention(model, enabled)


@contextlib.contextmanager
def answering(answers: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Make modules return stored outputs instead of computing them, within this context."""
    for module, answer in answers.items():
        module.forward = lambda *args, answer=answer, **kwargs: answer
    try:
        yield
    finally:
        for module in answers:
            del module.forward


@contextlib.contextmanager
def weights_quantized_once(model: nn.Module) -> Iterator[None]:
    """Quantize weights once instead of in each call, within this context; for inference with constant weights and ranges."""
    quantizers = model_quantizers(model)
    weights = [site for site in encoder_sites(model) if site.kind == WEIGHT and site.key in quantizers]
    with torch.no_grad():
        answers = {quantizers[site.key]: quantizers[site.key](model.get_parameter(site.parameter)) for site in weights}
    with answering(answers):
        yield
