"""Modules with quantizers for architectures whose residual Adds or attention differ from BERT's.

`architectures` names them. Each computes the same as its original in transformers, and has quantizers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from q8trt.quantization.attention import is_active, quantized, quantized_attention, quantized_sum, weighted_values


class QuantMPNetAttention(nn.Module):
    """MPNet's MPNetAttention, which calls the self-attention with its output projection and adds the residual."""

    residual: str
    attn: nn.Module
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Map (B, S, H) to (B, S, H) and the other results of the self-attention."""
        attended, *rest = self.attn(hidden_states, *args, **kwargs)
        return (self.LayerNorm(quantized_sum(self, self.residual, self.dropout(attended), hidden_states)), *rest)


class QuantMPNetSelfAttention(nn.Module):
    """MPNet's MPNetSelfAttention, which adds a position bias and does not use transformers' attention functions."""

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
        """Map (B, S, H) to (B, S, H), and the probabilities (B, A, S, S) with `output_attentions`.

        The bias, (B, A, S, S), is added to the mask, and the sum to the scores, because a fused attention requires a single
        Add after the product.
        """
        if not is_active(self):
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
    """ALBERT's AlbertAttention: a self-attention with its output projection, which also adds the residual."""

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
        """Map (B, S, H) to (B, S, H), and the probabilities (B, A, S, S) if the attention function returns them."""
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.attention_head_size)
        states = quantized(self, "input_quantizer", hidden_states)
        query, key, value = (each(states).view(heads).transpose(1, 2) for each in (self.query, self.key, self.value))
        eager = sys.modules[type(self).__module__].eager_attention_forward
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        dropout = self.attention_dropout.p if self.training else 0.0
        context, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        branch = self.output_dropout(self.dense(context.reshape(*shape, -1).contiguous()))
        return self.LayerNorm(quantized_sum(self, "attention", branch, hidden_states)), probabilities


class QuantAlbertLayer(nn.Module):
    """ALBERT's AlbertLayer, which adds the residual of its feed-forward network."""

    attention: nn.Module
    ff_chunk: Callable[[torch.Tensor], torch.Tensor]
    full_layer_layer_norm: nn.Module

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Map (B, S, H) to (B, S, H)."""
        attended, _ = self.attention(hidden_states, attention_mask, **kwargs)
        return self.full_layer_layer_norm(quantized_sum(self, "ffn", self.ff_chunk(attended), attended))


class QuantDisentangledSelfAttention(nn.Module):
    """DeBERTa-v2's DisentangledSelfAttention, whose scores are sums over content and relative positions.

    score(i, j) = (Q_i K_j + Q_i PK_b + PQ_b K_j) / sqrt(3 D), where b is the bucket of i - j (He et al., arXiv 2006.03654,
    section 3.1). The tables PK and PQ depend only on parameters, so an exported file has them as constants.
    """

    num_attention_heads: int
    attention_head_size: int
    pos_att_type: list[str]
    pos_ebd_size: int
    share_att_key: bool
    query_proj: nn.Module
    key_proj: nn.Module
    value_proj: nn.Module
    pos_dropout: nn.Module
    dropout: nn.Dropout
    #: True in an export, where tables are buffers, `relative_pos` is their index and `attention_mask` is added to the scores.
    is_traced = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        output_attentions: bool = False,
        query_states: torch.Tensor | None = None,
        relative_pos: torch.Tensor | None = None,
        rel_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, S, H) to (B, S, H), and the probabilities (B, A, S, S) with `output_attentions`, else None."""
        if not (self.is_traced or is_active(self)):
            original: Any = super().forward
            return original(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        assert relative_pos is not None
        shape = hidden_states.shape[:-1]
        projections = (self.query_proj, self.key_proj, self.value_proj)
        query, key, value = (self._by_heads(each(hidden_states)).transpose(1, 2) for each in projections)
        query = quantized(self, "bmm_q_quantizer", query * self._scaling)
        key = quantized(self, "bmm_k_quantizer", key).transpose(2, 3)
        if self.is_traced:
            tables, index, mask = dict(self.named_buffers(recurse=False)), relative_pos, attention_mask
        else:
            assert rel_embeddings is not None
            tables = self.position_tables(self.pos_dropout(rel_embeddings))
            index = self.position_index(relative_pos).unsqueeze(1).expand(*query.shape[:3], -1)
            mask = torch.zeros(()).to(query).masked_fill(~attention_mask.bool(), torch.finfo(query.dtype).min)
        added = mask
        for name, table in tables.items():
            table = quantized(self, f"{name}_quantizer", table)
            product, axis = (query @ table, -1) if name == "position_key" else (table @ key, -2)
            added = added + torch.gather(product, axis, index)
        scores = torch.matmul(query, key) + added
        context, probabilities = weighted_values(self, scores, value, self.dropout.p)
        return context.reshape(*shape, -1), probabilities if output_attentions else None

    def position_tables(self, rel_embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tables that the model has: "position_key" (A, D, 2 * span), "position_query" (A, 2 * span, D), scaled."""
        embeddings, tables = rel_embeddings[: 2 * self.pos_ebd_size], {}
        if "c2p" in self.pos_att_type:
            projection = self.key_proj if self.share_att_key else self.get_submodule("pos_key_proj")
            tables["position_key"] = self._by_heads(projection(embeddings)).permute(1, 2, 0)
        if "p2c" in self.pos_att_type:
            projection = self.query_proj if self.share_att_key else self.get_submodule("pos_query_proj")
            tables["position_query"] = self._by_heads(projection(embeddings) * self._scaling).transpose(0, 1)
        return tables

    def position_index(self, relative_pos: torch.Tensor) -> torch.Tensor:
        """Return the rows of the tables, int64 (1, S, S), for the buckets (1, S, S) of the distances from query to key."""
        return (relative_pos + self.pos_ebd_size).clamp(0, 2 * self.pos_ebd_size - 1)

    @property
    def _scaling(self) -> float:
        return float((self.attention_head_size * (1 + len({"c2p", "p2c"} & set(self.pos_att_type)))) ** -0.5)

    def _by_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], self.num_attention_heads, self.attention_head_size)


class QuantModernBertAttention(nn.Module):
    """ModernBERT's ModernBertAttention, with one projection for Q, K and V, and rotary positions."""

    head_dim: int
    attention_dropout: float
    Wqkv: nn.Module
    Wo: nn.Linear
    out_drop: nn.Module
    #: True in an export, which needs the split into heads before that into Q, K and V, also without quantizers.
    is_traced = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (B, S, H) to (B, S, H) and the probabilities (B, A, S, S)."""
        if not (self.is_traced or is_active(self)):
            original: Any = super().forward
            return original(hidden_states, position_embeddings, attention_mask, **kwargs)
        assert position_embeddings is not None
        shape = hidden_states.shape[:-1]
        count = self.Wo.in_features // self.head_dim
        heads = self.Wqkv(hidden_states).view(*shape, 3 * count, self.head_dim).transpose(1, 2)
        query, key, value = heads.split([count] * 3, dim=1)
        cosine, sine = (each.unsqueeze(1) for each in position_embeddings)
        query, key = (each * cosine + self._half_turned(each) * sine for each in (query, key))
        context, probabilities = quantized_attention(
            self,
            query,
            key,
            value,
            attention_mask,
            self.head_dim**-0.5,
            self.attention_dropout if self.training else 0.0,
        )
        return self.out_drop(self.Wo(context.reshape(*shape, -1))), probabilities

    def _half_turned(self, states: torch.Tensor) -> torch.Tensor:
        first, second = states.split([self.head_dim // 2] * 2, dim=-1)
        return torch.cat((-second, first), dim=-1)


class QuantPreNormLayer(nn.Module):
    """ModernBERT's ModernBertEncoderLayer, with LayerNorms before attention and before the feed-forward network."""

    attn: nn.Module
    attn_norm: nn.Module
    mlp: nn.Module
    mlp_norm: nn.Module

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Map (B, S, H) to (B, S, H)."""
        attended, _ = self.attn(
            self.attn_norm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            **kwargs,
        )
        hidden_states = quantized_sum(self, "attention", attended, hidden_states)
        return quantized_sum(self, "ffn", self.mlp(self.mlp_norm(hidden_states)), hidden_states)


def smoothed_positions(module: Any, rel_embeddings: torch.Tensor) -> torch.Tensor:
    """Return DeBERTa's embeddings of positions (R, H), divided by s if SmoothQuant multiplied the weights of Q and K by s."""
    scale = getattr(module._modules.get("input_quantizer"), "pre_quant_scale", None)
    return rel_embeddings if scale is None or not module.share_att_key else rel_embeddings * scale


#: All classes of this module.
CLASSES: tuple[type[nn.Module], ...] = (
    QuantMPNetAttention,
    QuantMPNetSelfAttention,
    QuantAlbertAttention,
    QuantAlbertLayer,
    QuantDisentangledSelfAttention,
    QuantModernBertAttention,
    QuantPreNormLayer,
)
