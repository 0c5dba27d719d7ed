"""The drift of a model's answers from its answers in floating point. It needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from q8trt.quantization.observation import Batch, answers

#: The largest drift that is recorded.
WORST = 1e6


@torch.no_grad()
def all_answers(model: Any, batches: Sequence[Batch]) -> torch.Tensor:
    """Return the logits or embeddings, float64 (rows, size), or (tokens, size) for a head that answers each token."""
    device = next(model.parameters()).device
    inputs = ({name: tensor.to(device) for name, tensor in batch.items()} for batch in batches)
    return torch.cat([answers(model, batch) for batch in inputs]).double()


def drift(answers: torch.Tensor, reference: torch.Tensor) -> float:
    """Return `Trial.drift` of answers (rows, size), at most WORST; WORST for answers that are not finite."""
    difference = float((answers - reference).square().sum(1).mean())
    spread = float((reference - reference.mean(0)).square().sum(1).mean())
    value = difference / max(spread, 1e-12)
    return value if value < WORST else WORST
