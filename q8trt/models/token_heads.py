"""`logits` (B, S, 2) of models for question answering.

transformers splits the logits of question answering into `start_logits` and `end_logits`. Here the output also has the
`logits` of the last linear layer, so these models train, export and run as those for token classification do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from q8trt.quantization.sites import classifier_of


@dataclass
class SpanOutput(QuestionAnsweringModelOutput):
    """transformers' output of question answering, with `logits` (B, S, 2): start and end."""

    logits: torch.FloatTensor | None = None


class SpanLogits:
    """A mixin before transformers' classes of question answering."""

    def forward(self, *args: Any, labels: torch.Tensor | None = None, **inputs: Any) -> SpanOutput:
        """Return the output of a batch; `labels` (B, 2), int64, are the first and the last token of each answer."""
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
    """Add `logits` to the output of a transformers model for question answering, in place; its class keeps its name."""
    kind = type(model)
    if not issubclass(kind, SpanLogits):
        model.__class__ = type(kind.__name__, (SpanLogits, kind), {"__module__": kind.__module__})
    return model
