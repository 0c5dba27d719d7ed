"""Heads that answer each token, as transformers has them: logits (B, S, outputs).

A model for question answering gives its logits in two, `start_logits` and `end_logits`. Here it also gives them as they leave its
last linear layer, `logits` (B, S, 2), so that it trains, exports and runs as all other models do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from q8trt.quantization.sites import classifier_of


@dataclass
class SpanOutput(QuestionAnsweringModelOutput):
    """Transformers' output of question answering, with `logits` (B, S, 2): start and end."""

    logits: torch.FloatTensor | None = None


class SpanLogits:
    """A base in front of transformers' classes of question answering."""

    def forward(self, *args: Any, labels: torch.Tensor | None = None, **inputs: Any) -> SpanOutput:
        """Answer a batch; `labels` (B, 2) are the first and the last token of each answer, int64."""
        model: Any = self
        if labels is not None:
            inputs |= {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
        logits: list[torch.FloatTensor] = []
        layer = model.get_submodule(classifier_of(model))
        hook = layer.register_forward_hook(lambda _, __, output: logits.append(output))
        try:
            outputs = super().forward(*args, **inputs)  # type: ignore[misc]
        finally:
            hook.remove()
        return SpanOutput(**outputs, logits=logits[0])


def with_span_logits(model: Any) -> Any:
    """Let a model of transformers for question answering also give `logits`, in place; its checkpoints keep their class."""
    kind = type(model)
    if not issubclass(kind, SpanLogits):
        model.__class__ = type(kind.__name__, (SpanLogits, kind), {"__module__": kind.__module__})
    return model
