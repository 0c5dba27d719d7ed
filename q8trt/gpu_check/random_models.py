"""BERT-base, BERT-large and MPNet-base with random weights, for times and differences of logits, not for scores."""

from __future__ import annotations

from typing import Any

#: name -> hidden size, layers, heads, intermediate size
SIZES = {"bert-base": (768, 12, 12, 3072), "bert-large": (1024, 24, 16, 4096), "mpnet-base": (768, 12, 12, 3072)}
#: Rows and columns of the random block that `tiled_model` repeats: 1 MiB in FP32.
_BLOCK = 512


def random_model(name: str) -> Any:
    """Return a model of `SIZES` with the random weights of transformers; they are the same in every call."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto import CONFIG_MAPPING

    hidden, layers, heads, intermediate = SIZES[name]
    sizes: dict[str, Any] = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate, "num_labels": 1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    config = CONFIG_MAPPING[name.partition("-")[0]](**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).eval()


def tiled_model(name: str) -> Any:
    """Return `random_model` with matrices that repeat one random block, so that its files compress well."""
    import torch

    model = random_model(name)
    generator = torch.Generator().manual_seed(0)
    block = 0.02 * torch.randn(_BLOCK, _BLOCK, generator=generator)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                rows, columns = (-(-size // _BLOCK) for size in weight.shape)
                weight.copy_(block.repeat(rows, columns)[: weight.shape[0], : weight.shape[1]])
    return model
