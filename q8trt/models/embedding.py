"""An embedding model: an encoder, pooling, Dense layers and normalization as one torch module.

The pooling formulas are those of sentence-transformers' `Pooling`. All steps after the encoder compute in FP32, also in an
FP16 engine, because a sum over 512 tokens and a division by a small norm lose the most in FP16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from q8trt.errors import CheckpointError
from q8trt.models.sentence_transformers import dense_folder, dense_paths, write_modules
from q8trt.quantization.weights import State, read_safetensors
from q8trt.tasks.heads import Embedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The file of a Dense layer's weights, and the prefix of their names.
_DENSE_FILE = "model.safetensors"
_DENSE_PREFIX = "linear."


class Pooling(nn.Module):
    """Pooling of hidden states (B, S, H) by a mask (B, S) of 0 and 1 to (B, modes * H), float32.

    A row without tokens gives no NaN.
    """

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the vectors of all modes, concatenated."""
        states, tokens = states.float(), mask.unsqueeze(-1).float()
        vectors = [_POOL[mode](states, tokens) for mode in self.modes]
        return torch.cat(vectors, dim=-1) if len(vectors) > 1 else vectors[0]


def _cls(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def _max(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return (states * tokens + (tokens - 1) * 1e9).amax(1)


def _mean(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return (states * tokens).sum(1) / tokens.sum(1).clamp(min=1e-9)


def _mean_sqrt_len(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return (states * tokens).sum(1) / tokens.sum(1).clamp(min=1e-9).sqrt()


def _weighted_mean(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Weight each token by its position, counted from 1: the running sum of the mask, because padding follows the text."""
    return _mean(states, tokens.cumsum(1) * tokens)


_POOL = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
}


class Normalize(nn.Module):
    """Scaling of vectors (B, D) to length 1; a vector of zeros stays zero."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the vectors, divided by their lengths."""
        return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12)


class EmbeddingModel(nn.Module):
    """A transformers encoder with the steps to an embedding; the output's `logits` are the embeddings (B, D), float32.

    The encoder has the same attribute name as in a model with a classifier ("bert"), so sites, recipes and checks apply.

    Args:
        encoder: a model without a head; its pooler, if it has one, is dropped.
        embedding: the steps from hidden states to the embedding.
        max_length: maximum number of tokens of a text, written to the saved folder.

    Attributes:
        in_fp32: modules whose nodes an FP16 export leaves in FP32.
    """

    in_fp32 = ("pooling", "dense", "normalize")

    def __init__(self, encoder: PreTrainedModel, embedding: Embedding, max_length: int | None = None) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # type: ignore[assignment]
        self.base_model_prefix: str = encoder.base_model_prefix
        self.embedding, self.max_length = embedding, max_length
        setattr(self, self.base_model_prefix, encoder)
        self.pooling = Pooling(embedding.pooling)
        self.dense = nn.ModuleList()
        for layer in embedding.dense:
            self.dense.append(nn.Linear(layer.in_features, layer.out_features, bias=layer.bias))
            self.dense.append(getattr(nn, layer.activation)())
        self.normalize = Normalize() if embedding.normalize else nn.Identity()

    @property
    def base_model(self) -> PreTrainedModel:
        """The encoder."""
        encoder: PreTrainedModel = getattr(self, self.base_model_prefix)
        return encoder

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.base_model.config

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.base_model.device

    def set_attn_implementation(self, implementation: str) -> None:
        """Set the encoder's attention function."""
        self.base_model.set_attn_implementation(implementation)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, tokens: torch.Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Embed a batch.

        Args:
            input_ids: (B, S) token ids.
            attention_mask: (B, S), 1 for tokens and 0 for padding; or the encoder's additive mask (B, 1, 1, S).
            tokens: (B, S), 1 for tokens and 0 for padding; default: `attention_mask`.
            **inputs: other arguments of the encoder, such as token_type_ids and output_hidden_states.
        """
        outputs = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        pooled = self.pooling(outputs.last_hidden_state, attention_mask if tokens is None else tokens)
        for layer in self.dense:
            pooled = layer(pooled)
        vectors = self.normalize(pooled)
        return SequenceClassifierOutput(
            logits=vectors, hidden_states=outputs.get("hidden_states"), attentions=outputs.get("attentions")
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that sentence-transformers opens, without the tokenizer."""
        from safetensors.torch import save_file

        folder = Path(folder)
        self.base_model.save_pretrained(folder)
        write_modules(folder, self.embedding, self.config.hidden_size, self.max_length)
        for number, linear in enumerate(self._linears()):
            weights = {f"{_DENSE_PREFIX}{name}": tensor.contiguous() for name, tensor in linear.state_dict().items()}
            save_file(weights, folder / dense_folder(number) / _DENSE_FILE, metadata={"format": "pt"})

    def read_dense(self, folder: str | Path) -> None:
        """Load the weights of the Dense layers from a folder of sentence-transformers.

        Raises:
            CheckpointError: a file is missing or damaged, or a weight has another shape.
        """
        for number, linear in enumerate(self._linears()):
            path = dense_paths(folder)[number] / _DENSE_FILE
            state = read_safetensors(path, "save the model as safetensors, or copy it again")
            try:
                linear.load_state_dict({name.removeprefix(_DENSE_PREFIX): tensor for name, tensor in state.items()})
            except RuntimeError:
                shape = "x".join(map(str, linear.weight.shape))
                raise CheckpointError(f"{path} has no layer of the shape {shape}; copy the model again") from None

    def full_state(self, state: State) -> State:
        """Return the state of the whole model: `state` of the encoder under this model's names, and the Dense layers'."""
        dense = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("dense.")}
        return {f"{self.base_model_prefix}.{name}": tensor for name, tensor in state.items()} | dense

    def _linears(self) -> list[nn.Linear]:
        return [module for module in self.dense if isinstance(module, nn.Linear)]
