"""The attention function with quantizers, and helpers for all modules with quantizers.

With a quantizer that is None, absent or disabled, results are bit-identical to the original's.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

#: Name of the attention function in transformers' registry.
ATTENTION = "q8trt"
#: Sites whose quantizers are in the attention function.
BMM_SITES = ("bmm_q", "bmm_k", "softmax_out", "bmm_v", "position_key", "position_query")


def quantized(module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the output of the quantizer `name` of `module`; `tensor` itself if there is none."""
    quantizer = module._modules.get(name)
    return tensor if quantizer is None else quantizer(tensor)


def quantized_sum(module: nn.Module, residual: str, branch: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Return the sum of both quantized inputs of a residual Add; the sum, which LayerNorm reads, is not quantized.

    `residual` is "attention" or "ffn". If the inputs are smoothed (`Recipe.smooth_residuals`), both quantizers divide by s,
    and the sum is multiplied by s.
    """
    names = (f"{residual}_branch_quantizer", f"{residual}_skip_quantizer")
    total = quantized(module, names[0], branch) + quantized(module, names[1], skip)
    quantizers: list[Any] = [module._modules.get(name) for name in names]
    scales = [getattr(quantizer, "pre_quant_scale", None) for quantizer in quantizers]
    return total if scales[0] is None or scales[1] is None else total / scales[0]


def is_active(module: nn.Module) -> bool:
    """Return whether a quantizer of the attention function is enabled in the self-attention `module`."""
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

    Q is scaled before its quantizer, instead of the scores after the product. TensorRT then fuses the product with the
    operations after it. The Add of the mask and softmax stay in floating point. If no quantizer is active, the model's eager
    attention is used, except while the export traces the module.

    Args:
        module: the self-attention module, which has the quantizers.
        query, key, value: (B, A, S, D), floating point.
        attention_mask: added to the scores, (B, 1, S, S) or broadcastable; None for no mask.
        scaling: factor of Q; None for 1 / sqrt(D).
        dropout: dropout probability of the attention probabilities in training.

    Returns:
        context (B, S, A, D) and probabilities (B, A, S, S).
    """
    if not (is_active(module) or getattr(module, "is_traced", False)):
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    query = quantized(module, "bmm_q_quantizer", query * scaling)
    key = quantized(module, "bmm_k_quantizer", key)
    scores = torch.matmul(query, key.transpose(2, 3))
    return weighted_values(module, scores if attention_mask is None else scores + attention_mask, value, dropout)


def weighted_values(
    module: nn.Module, scores: torch.Tensor, value: torch.Tensor, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the context (B, S, A, D) and the probabilities (B, A, S, S) of scores (B, A, S, S) and V (B, A, S, D)."""
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    weights = quantized(module, "softmax_out_quantizer", probabilities)
    context = torch.matmul(weights, quantized(module, "bmm_v_quantizer", value))
    return context.transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(ATTENTION, quantized_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
