"""Classes of modules with quantizers. Each computes the same as its original, and has quantizers.

They replace the class of a module in place (``module.__class__``). Parameters keep their names, so transformers still opens
the checkpoint. With a quantizer that is None, absent or disabled, results are bit-identical to the original's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from q8trt.quantization import layers
from q8trt.quantization.architectures import Architecture
from q8trt.quantization.attention import ATTENTION, BMM_SITES, quantized, quantized_sum
from q8trt.quantization.layers import smoothed_positions

__all__ = ["ATTENTION", "BMM_SITES", "QuantLinear", "quantize_first_argument", "quantized_class", "smoothed_positions"]

Quantizer = Callable[[torch.Tensor], torch.Tensor]


class QuantLinear(nn.Linear):
    """A linear with optional quantizers for its input and its weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        input = quantized(self, "input_quantizer", input)
        return nn.functional.linear(input, quantized(self, "weight_quantizer", self.weight), self.bias)


class QuantEmbedding(nn.Embedding):
    """A table of embeddings, quantized by rows or as a whole."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map integers (...) to (..., embedding_dim).

        In training with a frozen range, only the rows that are looked up are quantized. This gives the same values with a
        thousandth of the work. Otherwise the whole table is quantized, so that an exported file can store it in INT8.
        """
        quantizer: Any = self._modules.get("weight_quantizer")
        if quantizer is None or not (self.training and _is_frozen(quantizer)):
            weight = quantized(self, "weight_quantizer", self.weight)
            return nn.functional.embedding(input, weight, self.padding_idx)
        from modelopt.torch.quantization.tensor_quant import fake_tensor_quant

        amax = quantizer.amax
        if amax.numel() > 1:
            amax = nn.functional.embedding(input, amax)
        # The arguments after amax: bias, num_bits, unsigned, narrow_range, dtype of the exported scale, pass_through_bwd.
        return fake_tensor_quant(super().forward(input), amax, None, quantizer._num_bits, False, False, None, False)


def _is_frozen(quantizer: Any) -> bool:
    """Return whether the quantizer is active and its range is neither learned nor observed in this step."""
    watched = quantizer._forward_pre_hooks or quantizer._forward_hooks or quantizer._if_calib
    active = quantizer._if_quant and not quantizer._disabled
    return active and not watched and quantizer.amax is not None and "_amax" in quantizer._buffers


class QuantOutput(nn.Module):
    """A module that adds a residual after a projection (dense, dropout, Add, LayerNorm), such as BERT's SelfOutput and Output."""

    residual: str
    dense: nn.Module
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Map (B, S, in_features) and (B, S, H) to (B, S, H)."""
        branch = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(quantized_sum(self, self.residual, branch, input_tensor))


class QuantTransformerBlock(nn.Module):
    """DistilBERT's TransformerBlock, a layer that adds both residuals itself."""

    attention: nn.Module
    ffn: nn.Module
    sa_layer_norm: nn.Module
    output_layer_norm: nn.Module

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Map (B, S, H) to (B, S, H)."""
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        attended = self.sa_layer_norm(quantized_sum(self, "attention", attended, hidden_states))
        return self.output_layer_norm(quantized_sum(self, "ffn", self.ffn(attended), attended))


#: Name -> class, for all classes with quantizers.
_CLASSES = {
    each.__name__: each for each in (QuantLinear, QuantEmbedding, QuantOutput, QuantTransformerBlock, *layers.CLASSES)
}


def quantized_class(module: nn.Module, site: str, architecture: Architecture) -> type[nn.Module] | None:
    """Return a class with quantizers for `module`, so that it stays an instance of its original class; None if none exists.

    Args:
        module: the module of the site.
        site: the site's name, which also determines the residual that the module adds.
        architecture: the architecture, which has the classes of modules that add a residual or compute attention.
    """
    original = type(module)
    if isinstance(module, tuple(_CLASSES.values())):
        return original
    if isinstance(module, nn.Linear):
        return QuantLinear
    if isinstance(module, nn.Embedding):
        return QuantEmbedding
    residual, is_residual, _ = site.partition("_residual.")
    if is_residual:
        name = getattr(architecture, f"{residual}_residual_class")
    else:
        name = architecture.attention_class if site in ("qkv_input", *BMM_SITES) else None
    if name is None:
        return None
    # Functions of the original's file are looked up by its `__module__`.
    body = {"residual": residual, "__module__": original.__module__}
    return type(f"Quant{original.__name__}", (_CLASSES[name], original), body)


def quantize_first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Quantize the common input of Q, K and V. A forward pre-hook of a self-attention module."""
    positions = kwargs.get("rel_embeddings")
    if positions is not None:
        kwargs = kwargs | {"rel_embeddings": smoothed_positions(module, positions)}
    return (quantized(module, "input_quantizer", args[0]), *args[1:]), kwargs
