"""Setting the dropout of a configuration and of a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from q8trt.quantization.architectures import architecture_of

if TYPE_CHECKING:
    from q8trt.models.checkpoints import Model

#: BERT's names of the dropout fields; transformers reads them even if a configuration file lacks them.
_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def configure_dropout(config: Any, probability: float) -> None:
    """Set every dropout probability of a transformers configuration, including embeddings, pooler and heads, in place."""
    architecture = architecture_of(config)
    for name in {*map(architecture.config_name, _FIELDS), *(name for name in config.to_dict() if "dropout" in name)}:
        setattr(config, name, probability)


def set_dropout(model: Model, probability: float) -> None:
    """Set every dropout probability of a loaded model and of its configuration, in place."""
    from torch import nn

    configure_dropout(model.config, probability)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Identity) and "drop" in name:  # transformers' module for a dropout of 0
                setattr(module, name, nn.Dropout(probability).train(module.training))
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), int | float):
            setattr(module, "attention_dropout", probability)  # noqa: B010 - a number, where mypy expects a tensor or module
