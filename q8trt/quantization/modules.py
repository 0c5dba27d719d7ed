"""Modules and the attention function that carry quantizers. Each computes what its original does, through quantizers.

They replace the class of a module in place (``module.__class__``), so that parameters keep their names and a checkpoint
opens in transformers as before. A quantizer that is None, absent or disabled changes nothing, not even a bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from q8trt.quantization.architectures import Architecture

#: Name of the attention function in transformers' registry.
ATTENTION = "q8trt"
#: Sites whose quantizer is read by the attention function.
BMM_SITES = ("bmm_q", "bmm_k", "softmax_out", "bmm_v")

Quantizer = Callable[[torch.Tensor], torch.Tensor]


def _quantized(module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` through the quantizer `name` of `module`, if it has one."""
    quantizer = module._modules.get(name)
    return tensor if quantizer is None else quantizer(tensor)


class QuantLinear(nn.Linear):
    """A linear whose input and weight pass through a quantizer, where there is one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        input = _quantized(self, "input_quantizer", input)
        return nn.functional.linear(input, _quantized(self, "weight_quantizer", self.weight), self.bias)


class QuantEmbedding(nn.Embedding):
    """A table of embeddings, quantized by rows or as a whole."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map integers (...) to (..., embedding_dim).

        While training with a frozen range, only the rows looked up are quantized: the same values as from the quantized
        table, for a thousandth of the work. Otherwise the table is, so that the exported file can hold it in INT8.
        """
        quantizer: Any = self._modules.get("weight_quantizer")
        if quantizer is None or not (self.training and _is_frozen(quantizer)):
            weight = _quantized(self, "weight_quantizer", self.weight)
            return nn.functional.embedding(input, weight, self.padding_idx)
        from modelopt.torch.quantization.tensor_quant import fake_tensor_quant

        amax = quantizer.amax
        if amax.numel() > 1:
            amax = nn.functional.embedding(input, amax)
        # In order: bias, num_bits, unsigned, narrow_range, dtype of the exported scale, pass_through_bwd.
        return fake_tensor_quant(super().forward(input), amax, None, quantizer._num_bits, False, False, None, False)


def _is_frozen(quantizer: Any) -> bool:
    """Return whether the quantizer computes with a range that this step neither learns nor observes."""
    watched = quantizer._forward_pre_hooks or quantizer._forward_hooks or quantizer._if_calib
    active = quantizer._if_quant and not quantizer._disabled
    return active and not watched and quantizer.amax is not None and "_amax" in quantizer._buffers


def _quantized_sum(module: nn.Module, residual: str, branch: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Return the residual sum of both inputs, quantized. The sum itself, which LayerNorm reads, is not.

    Where the inputs are smoothed (`smoothquant.smooth_residuals`), both quantizers divide by s; the sum is multiplied by it.
    """
    names = (f"{residual}_branch_quantizer", f"{residual}_skip_quantizer")
    total = _quantized(module, names[0], branch) + _quantized(module, names[1], skip)
    quantizers: list[Any] = [module._modules.get(name) for name in names]
    scales = [getattr(quantizer, "pre_quant_scale", None) for quantizer in quantizers]
    return total if scales[0] is None or scales[1] is None else total / scales[0]


class QuantOutput(nn.Module):
    """A module that adds a residual after a projection: dense, dropout, Add & LayerNorm, as BERT's SelfOutput and Output."""

    residual: str
    dense: nn.Module
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Map (B, S, in_features) and (B, S, H) to (B, S, H)."""
        branch = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(_quantized_sum(self, self.residual, branch, input_tensor))


class QuantTransformerBlock(nn.Module):
    """A layer that adds both residuals itself, as DistilBERT's."""

    attention: nn.Module
    ffn: nn.Module
    sa_layer_norm: nn.Module
    output_layer_norm: nn.Module

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Map (B, S, H) to (B, S, H)."""
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        attended = self.sa_layer_norm(_quantized_sum(self, "attention", attended, hidden_states))
        return self.output_layer_norm(_quantized_sum(self, "ffn", self.ffn(attended), attended))


class QuantMPNetAttention(nn.Module):
    """A module that computes attention with its output projection, and adds the residual: MPNet's MPNetAttention."""

    residual: str
    attn: nn.Module
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Map (B, S, H), and what the self-attention takes, to (B, S, H) and what else the self-attention returns."""
        attended, *rest = self.attn(hidden_states, *args, **kwargs)
        return (self.LayerNorm(_quantized_sum(self, self.residual, self.dropout(attended), hidden_states)), *rest)


class QuantMPNetSelfAttention(nn.Module):
    """A self-attention that asks no registry for its attention function, and adds a position bias: MPNetSelfAttention."""

    attention_head_size: int
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    dropout: nn.Dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """Map (B, S, H) to (B, S, H), and the probabilities (B, A, S, S) if asked for.

        The bias, (B, A, S, S), is added to the mask and their sum to the scores: one Add behind the product, as a fused
        attention has it.
        """
        if not _is_active(self):
            original: Any = super().forward
            return original(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.attention_head_size)
        query, key, value = (each(hidden_states).view(heads).transpose(1, 2) for each in (self.q, self.k, self.v))
        if attention_mask is None or position_bias is None:
            added = position_bias if attention_mask is None else attention_mask
        else:
            added = attention_mask + position_bias
        scaling = self.attention_head_size**-0.5
        context, probabilities = quantized_attention(self, query, key, value, added, scaling, self.dropout.p)
        attended = self.o(context.reshape(*shape, -1))
        return (attended, probabilities) if output_attentions else (attended,)


class QuantAlbertAttention(nn.Module):
    """A self-attention with its output projection, that also adds the residual: ALBERT's AlbertAttention."""

    config: Any
    attention_head_size: int
    scaling: float
    query: nn.Module
    key: nn.Module
    value: nn.Module
    dense: nn.Module
    attention_dropout: nn.Dropout
    output_dropout: nn.Module
    LayerNorm: nn.Module

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, S, H) to (B, S, H) and the probabilities (B, A, S, S), where the attention function returns them."""
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.attention_head_size)
        states = _quantized(self, "input_quantizer", hidden_states)
        query, key, value = (each(states).view(heads).transpose(1, 2) for each in (self.query, self.key, self.value))
        eager = sys.modules[type(self).__module__].eager_attention_forward
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        dropout = self.attention_dropout.p if self.training else 0.0
        context, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        branch = self.output_dropout(self.dense(context.reshape(*shape, -1).contiguous()))
        return self.LayerNorm(_quantized_sum(self, "attention", branch, hidden_states)), probabilities


class QuantAlbertLayer(nn.Module):
    """A layer that adds the residual of its feed-forward network: ALBERT's AlbertLayer."""

    attention: nn.Module
    ff_chunk: Callable[[torch.Tensor], torch.Tensor]
    full_layer_layer_norm: nn.Module

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Map (B, S, H) to (B, S, H)."""
        attended, _ = self.attention(hidden_states, attention_mask, **kwargs)
        return self.full_layer_layer_norm(_quantized_sum(self, "ffn", self.ff_chunk(attended), attended))


#: All of the above: a module that is one carries its quantizers already.
_QUANTIZED = (
    QuantLinear,
    QuantEmbedding,
    QuantOutput,
    QuantTransformerBlock,
    QuantMPNetAttention,
    QuantMPNetSelfAttention,
    QuantAlbertAttention,
    QuantAlbertLayer,
)


def quantized_class(module: nn.Module, site: str, architecture: Architecture) -> type[nn.Module] | None:
    """Return the class that gives `module` quantizers and keeps it an instance of its own class; None where there is none.

    Args:
        module: the module of the site.
        site: the site's name; that of a residual says which one the module adds.
        architecture: names the classes in this file for modules that add a residual or compute attention.
    """
    original = type(module)
    if isinstance(module, _QUANTIZED):
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
    # Functions of the original's file are looked up by `__module__`.
    body = {"residual": residual, "__module__": original.__module__}
    return type(f"Quant{original.__name__}", (globals()[name], original), body)


def quantize_first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Quantize what Q, K and V all read: forward pre-hook of a self-attention module."""
    return (_quantized(module, "input_quantizer", args[0]), *args[1:]), kwargs


def _is_active(module: nn.Module) -> bool:
    quantizers: list[Any] = [module._modules.get(f"{site}_quantizer") for site in BMM_SITES]
    return any(quantizer is not None and not quantizer._disabled for quantizer in quantizers)


def quantized_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention whose two products read quantized tensors.

    Q is scaled before its quantizer, not the scores after the product: TensorRT then fuses the product with what follows
    it. The Add of the mask, and softmax, stay in floating point. Where no quantizer is active, the model's own eager
    attention computes.

    Args:
        module: the self-attention module, which holds the quantizers.
        query: (B, A, S, D); `key` and `value` likewise.
        attention_mask: added to the scores, (B, 1, S, S) or broadcastable; None for none.
        scaling: of Q; 1 / sqrt(D) if None.
        dropout: probability for the attention probabilities while training.

    Returns:
        context (B, S, A, D) and probabilities (B, A, S, S).
    """
    if not _is_active(module):
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    query = _quantized(module, "bmm_q_quantizer", query * scaling)
    key = _quantized(module, "bmm_k_quantizer", key)
    scores = torch.matmul(query, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    quantized = _quantized(module, "softmax_out_quantizer", probabilities)
    context = torch.matmul(quantized, _quantized(module, "bmm_v_quantizer", value))
    return context.transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(ATTENTION, quantized_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
