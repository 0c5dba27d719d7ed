"""Relative and rotary positions as constants of the exported graph. transformers computes them at run time.

Each function changes the copy of the model that is traced. B: batch, S: sequence, P: positions of the model, A: heads.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from q8trt.models import positions
from q8trt.quantization.architectures import Architecture, architecture_of
from q8trt.quantization.modules import BMM_SITES, quantized_class, smoothed_positions

#: Added to the scores of padding. FP16 can represent it, and the exponential of the sum is zero in FP32 and in FP16.
#: transformers uses the smallest float, which becomes -infinity when a score is added in FP16.
MASKED = -10000.0


def additive_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return the float32 (B, 1, 1, S) that is added to the scores, for a mask (B, S) of 1 for tokens and 0 for padding."""
    return (1.0 - mask.unsqueeze(1).unsqueeze(2).float()) * MASKED


def makes_own_masks(architecture: Architecture) -> bool:
    """Return whether the traced model reads the mask (B, S) itself and makes the masks of its attention from it."""
    return architecture.position_attention is not None or architecture.rotary is not None


def tabulate_positions(model: Any) -> None:
    """Change an encoder in place so that it reads relative or rotary positions from constants and makes masks as here."""
    architecture = architecture_of(model.config)
    if architecture.position_attention is not None:
        _tabulate_buckets(model.base_model, architecture)
    elif architecture.rotary is not None:
        _tabulate_rotations(model.base_model, architecture)


def take_position_biases(encoder: Any, positions: int) -> torch.Tensor:
    """Return the bias of each distance from a query to a key, and remove the bias from `encoder` in place.

    Args:
        encoder: an encoder with a bias of relative positions by buckets, as in T5.
        positions: the maximum number of tokens in a row.

    Returns:
        float32 (2 * positions - 1, A), for the distances from 1 - positions to positions - 1.
    """
    buckets = encoder.relative_position_bucket(torch.arange(1 - positions, positions))
    encoder.compute_position_bias = lambda *args, **kwargs: None
    biases: torch.Tensor = encoder.relative_attention_bias(buckets).detach()
    return biases


def position_bias(ids: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    """Return the bias of the score of each query and key, (A, S, S), for `ids` (B, S) and the `biases` (2 * P - 1, A)."""
    order = torch.cumsum(ids[:1] * 0 + 1, 1, dtype=torch.int32)
    distances = order - order.transpose(0, 1) + len(biases) // 2
    return nn.functional.embedding(distances, biases).permute(2, 0, 1)


def _trace_attention(layer: nn.Module, architecture: Architecture) -> Any:
    """Return the self-attention of a layer as a module of `q8trt.quantization.layers`, also without quantizers."""
    attention: Any = layer.get_submodule(architecture.self_attention)
    attention.__class__ = quantized_class(attention, BMM_SITES[0], architecture)
    attention.is_traced = True
    return attention


def _tabulate_buckets(base: Any, architecture: Architecture) -> None:
    """Let the encoder of DeBERTa-v2 read the rows of its position tables, and the index of a row, from constants."""
    encoder, length = base.encoder, positions(base.config)
    with torch.no_grad():
        embeddings = encoder.get_rel_embedding()
        for layer in encoder.layer:
            attention = _trace_attention(layer, architecture)
            for name, table in attention.position_tables(smoothed_positions(attention, embeddings)).items():
                attention.register_buffer(name, table.contiguous())
        buckets = encoder.get_rel_pos(torch.zeros(1, length, 1))
        encoder.register_buffer("position_index", attention.position_index(buckets))
        encoder.register_buffer("no_heads", torch.zeros(1, base.config.num_attention_heads, 1, 1, dtype=torch.int64))
    masks: list[torch.Tensor] = []

    def note_mask(mask: torch.Tensor) -> torch.Tensor:
        masks[:] = [mask]
        return additive_mask(mask)

    def index_of_rows(*_: Any) -> torch.Tensor:
        """Return the index (B, A, S, S) as a sum, because the exporters write an expansion in different ways."""
        length = masks[0].shape[1]
        rows = encoder.position_index[:, :length, :length].unsqueeze(1)
        return rows + encoder.no_heads + (masks[0][:, :1] * 0).long().unsqueeze(-1).unsqueeze(-1)

    encoder.get_rel_embedding = lambda: None
    encoder.get_attention_mask, encoder.get_rel_pos = note_mask, index_of_rows


def _tabulate_rotations(base: Any, architecture: Architecture) -> None:
    """Let ModernBERT read cosines and sines from constants. FP16 can represent them, but not the angles of far positions."""
    rotary = base.get_submodule(architecture.rotary)
    for layer in base.get_submodule(architecture.layers):
        _trace_attention(layer, architecture)
        layer.mlp.forward = functools.partial(_gated, layer.mlp)
    order, names = torch.arange(positions(base.config)).unsqueeze(0), ("cosine", "sine")
    for kind in rotary.layer_types:
        for name, table in zip(names, rotary(torch.zeros(1), order, kind), strict=True):
            rotary.register_buffer(f"{kind}_{name}", table)
    rotary.forward = lambda states, _, kind: tuple(
        getattr(rotary, f"{kind}_{name}")[:, : states.shape[1]] for name in names
    )
    distances = torch.arange(1 - len(order[0]), len(order[0]))
    outside = (distances.abs() > base.config.sliding_window).float().unsqueeze(1) * MASKED
    base.register_buffer("outside_window", outside)
    base.register_forward_pre_hook(_with_windows, with_kwargs=True)


def _gated(mlp: Any, states: torch.Tensor) -> torch.Tensor:
    """Return the output of ModernBertMLP. It is split at a constant size, so the graph has no shape arithmetic."""
    value, gate = mlp.Wi(states).split([mlp.Wo.in_features] * 2, dim=-1)
    result: torch.Tensor = mlp.Wo(mlp.drop(mlp.act(value) * gate))
    return result


def _with_windows(base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Replace the mask (B, S) by one mask for each kind of layer. This is a forward pre-hook."""
    mask = kwargs["attention_mask"]
    everywhere = additive_mask(mask)
    near = everywhere + position_bias(mask, base.outside_window)
    return args, kwargs | {"attention_mask": {"full_attention": everywhere, "sliding_attention": near}}
