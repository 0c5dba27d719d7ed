"""The configuration of a run that quantizes a fine-tuned model without training on labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from q8trt.errors import ConfigError
from q8trt.models import load_tokenizer, local_folder, read_head, resolve_model
from q8trt.quantization.recipe import load_recipe
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.quantize_config import QuantizeConfig
from q8trt.tasks.data import DEFAULT_LENGTH
from q8trt.tasks.data.windows import WindowSizes
from q8trt.tasks.heads import Head, HeadKind

#: Kind of head -> default maximum tokens of a text, for heads that read passages.
_LENGTHS = {HeadKind.QUESTION_ANSWERING: WindowSizes().max_length, HeadKind.RERANKER: 512}
#: Weight of the hidden states in distillation. A head with few outputs gives little information about each layer.
_HIDDEN_WEIGHT = 0.1


def quantization_of(model: str | Path, config: QuantizeConfig, say: Callable[[str], object]) -> FinetuneConfig:
    """Return the configuration of the run that quantizes `model`.

    Args:
        model: a folder of Hugging Face or sentence-transformers, a hub name, or a short name such as "minilm".
        config: options of the quantization.
        say: function that prints one line about the model.

    Raises:
        CheckpointError: the model is not found or damaged, or its head is missing or not supported.
        ConfigError: an option does not fit the model.
    """
    name = str(model)
    folder = local_folder(name)
    shown = name if folder == resolve_model(name) else folder  # errors show a short name, not the folder of its package
    head = read_head(shown, config.kind, config.pooling)
    longest = int(load_tokenizer(folder).model_max_length)
    if config.max_seq_length and config.max_seq_length > longest:
        raise ConfigError(
            f"--max_seq_length {config.max_seq_length}, but the model has {longest} positions; give {longest} or less"
        )
    length = config.max_seq_length or min(head.max_length or _LENGTHS.get(head.kind, DEFAULT_LENGTH), longest)
    data = config.data(head=head, max_seq_length=length)
    say(f"model: {name}, {describe(head)}, {length} tokens at most")
    recipe = config.calibration.recipe or load_recipe(config.calibration.target.recipe)
    applied = {**config.calibration.apply(recipe), "qat": config.distill > 0}
    if config.distill:
        applied["training"] = replace(
            applied["training"],
            qat_epochs=config.distill,
            qat_dropout=0.0,  # the teacher computes without dropout, so the student does, too
            label_loss_weight=0.0,
            distillation_weight=1.0,
            hidden_loss_weight=0.0 if head.kind is HeadKind.EMBEDDING else _HIDDEN_WEIGHT,
            do_eval=False,
        )
    return FinetuneConfig(data, model_name_or_path=folder, from_fp32=folder, **applied)


def describe(head: Head) -> str:
    """Return a description of the head, such as "labels positive, negative"."""
    if head.embedding:
        steps = [
            *head.embedding.pooling,
            *("Dense" for _ in head.embedding.dense),
            *["normalized"] * head.embedding.normalize,
        ]
        return f"embeddings of {head.embedding.dimension} features ({', '.join(steps)})"
    if head.kind is HeadKind.QUESTION_ANSWERING:
        return "the start and the end of an answer"
    tokens = " of tokens" if head.kind is HeadKind.TOKEN_CLASSIFICATION else ""
    score = "a score of a query and a document" if head.kind is HeadKind.RERANKER else "a score"
    return f"labels{tokens} {', '.join(head.labels)}" if head.labels else score
