"""The head of a checkpoint, read from its folder, and the check that it fits a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from q8trt.console.commands import command
from q8trt.errors import CheckpointError, ConfigError
from q8trt.models.activation import activation_of, activation_of_reranker, adopt_activation, is_cross_encoder
from q8trt.models.config import load_config
from q8trt.models.labels import label_order
from q8trt.models.locate import resolve_model
from q8trt.models.sentence_transformers import has_modules, read_embedding
from q8trt.tasks.heads import POOLING_MODES, Embedding, Head, HeadKind

if TYPE_CHECKING:
    from q8trt.tasks.glue import Task

#: transformers' problem type of a model with an independent answer for each label.
MULTI_LABEL = "multi_label_classification"
_CLASSIFIER = "ForSequenceClassification"
#: Ending of a transformers class -> the kind of its head; a regression model has the class of a classifier.
_KINDS = {
    _CLASSIFIER: HeadKind.SEQUENCE_CLASSIFICATION,
    "ForTokenClassification": HeadKind.TOKEN_CLASSIFICATION,
    "ForQuestionAnswering": HeadKind.QUESTION_ANSWERING,
}
#: Ending of a transformers class -> its head, for heads that q8trt does not support.
_OTHER_HEADS = {"ForMultipleChoice": "multiple choice"}


def class_ending(kind: HeadKind) -> str:
    """Return the ending of transformers' classes with a head of this kind, such as "ForTokenClassification"."""
    return next((ending for ending, each in _KINDS.items() if each is kind), _CLASSIFIER)


def kind_of(classes: Sequence[str]) -> HeadKind | None:
    """Return the kind of head of the transformers classes that config.json names; None if none of them has a known head."""
    return next((kind for name in classes for ending, kind in _KINDS.items() if name.endswith(ending)), None)


def read_head(name_or_path: str, kind: HeadKind | None = None, pooling: tuple[str, ...] = ()) -> Head:
    """Return the head of a checkpoint.

    Args:
        name_or_path: a folder of Hugging Face or sentence-transformers, a hub name, or a short name.
        kind: the kind of head; None for the kind that the folder states.
        pooling: the pooling modes of an encoder without `modules.json`; () for those of the folder.

    Raises:
        CheckpointError: the checkpoint does not exist or is damaged, its head is missing or not supported, or its labels
            have no distinct, printable names.
        ConfigError: `pooling` is unknown, missing, not for this kind of head, or defined by the folder already.
    """
    folder, config = resolve_model(name_or_path), load_config(name_or_path)
    classes = [str(name) for name in config.architectures or []]
    adopt_activation(config, folder)
    kind = kind or _kind(classes, config, folder, name_or_path)
    if pooling and kind is not HeadKind.EMBEDDING:
        raise ConfigError(f"--pooling is for an embedding model, and {name_or_path} is read as {kind}")
    if kind is HeadKind.EMBEDDING:
        return _embedding(folder, config, pooling, name_or_path)
    if not any(name.endswith(class_ending(kind)) for name in classes):
        remedy = "give a fine-tuned checkpoint, or fine-tune it: finetune.py --task TASK --model_name_or_path DIR"
        if kind_of(classes) or has_modules(folder):
            remedy = "leave --head out, or give another model"
        raise CheckpointError(
            f"{name_or_path} has no {kind} head ({', '.join(classes) or 'no architecture named'} in config.json); {remedy}"
        )
    if kind.is_score:
        if config.num_labels != 1:
            raise CheckpointError(
                f"{name_or_path} has {config.num_labels} outputs, and a {kind} has one; leave --head out, or give another model"
            )
        return Head(
            kind, activation=activation_of_reranker(config, name_or_path) if kind is HeadKind.RERANKER else "identity"
        )
    if kind is HeadKind.QUESTION_ANSWERING:
        if config.num_labels != 2:
            raise CheckpointError(
                f"{name_or_path} has {config.num_labels} outputs, and question answering has two: start and end"
            )
        return Head(kind)
    if not kind.per_token:
        _check_problem(config.problem_type, kind, name_or_path)
    return Head(kind, _labels(config, name_or_path))


def _kind(classes: list[str], config: Any, folder: str, where: str) -> HeadKind:
    """Return the kind of head that a folder states."""
    if any(name.endswith(_CLASSIFIER) for name in classes):
        if config.problem_type == MULTI_LABEL:
            return HeadKind.MULTI_LABEL_CLASSIFICATION
        if config.num_labels > 1:
            return HeadKind.SEQUENCE_CLASSIFICATION
        return HeadKind.RERANKER if is_cross_encoder(config) else HeadKind.REGRESSION
    if kind := kind_of(classes):
        return kind
    if has_modules(folder):
        return HeadKind.EMBEDDING
    other = next((head for name in classes for ending, head in _OTHER_HEADS.items() if name.endswith(ending)), None)
    if other:
        raise CheckpointError(f"{where} has a head for {other}; q8trt supports {', '.join(HeadKind)}")
    raise CheckpointError(
        f"{where} has no head ({', '.join(classes) or 'no architecture named'} in config.json, and no modules.json); for an "
        "embedding model, use q8trt quantize with --head embedding --pooling mean"
    )


def _check_problem(problem_type: str | None, kind: HeadKind, where: str) -> None:
    """Raise CheckpointError if only one of config.json and `kind` is multi-label."""
    if problem_type is not None and (problem_type == MULTI_LABEL) is not (kind is HeadKind.MULTI_LABEL_CLASSIFICATION):
        raise CheckpointError(
            f"{where} is not for {kind} (problem_type {problem_type} in config.json); leave --head out"
        )


def _embedding(folder: str, config: Any, pooling: tuple[str, ...], where: str) -> Head:
    width = int(config.hidden_size)
    if has_modules(folder):
        if pooling:
            raise ConfigError(f"{where} defines its own pooling (modules.json); leave --pooling out")
        embedding, length = read_embedding(folder, width)
        return Head(HeadKind.EMBEDDING, max_length=length, embedding=embedding)
    if not pooling:
        raise ConfigError(
            f"{where} does not define its pooling (no modules.json); give --pooling with {' or '.join(POOLING_MODES)}"
        )
    return Head(HeadKind.EMBEDDING, embedding=Embedding(len(pooling) * width, pooling))


def _labels(config: Any, where: str) -> tuple[str, ...]:
    """Return the names of the outputs, in order; raise CheckpointError if one is repeated or cannot be printed."""
    names = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise CheckpointError(
            f"{where} has the label {twice!r} twice (id2label in config.json); give each output its own name"
        )
    if blank := [number for number, name in enumerate(names) if not name.strip() or not name.isprintable()]:
        raise CheckpointError(
            f"{where}: the output {blank[0]} has no name that can be printed (id2label in config.json)"
        )
    if len(names) < 2:
        raise CheckpointError(
            f"{where} has one output, and a classification needs two or more labels; give --head regression"
        )
    return names


def check_head(config: Any, task: Task, where: str) -> tuple[int, ...] | None:
    """Check that a checkpoint has a head for `task`.

    Returns:
        the order of its outputs, see `label_order`.

    Raises:
        CheckpointError: the head is missing, has another size, kind or other labels, or an unsupported activation.
    """
    if task.embedding:
        return None
    architectures = config.architectures or []
    if not any(class_ending(task.head.kind) in architecture for architecture in architectures):
        command_line = command("finetune", "--task", task.name, "--precision", "fp32", "--model_name_or_path", where)
        kind = f"{task.head.kind.value.replace('-', ' ')} " if task.per_token else "classification "
        raise CheckpointError(
            f"{where} has no fine-tuned {kind}head ({', '.join(architectures) or 'no architecture named'}); "
            f"fine-tune it first: {command_line}"
        )
    if config.num_labels != task.num_labels:
        raise CheckpointError(
            f"{where} has a head of {config.num_labels} outputs, {task.name} needs {task.num_labels}; "
            "check --task or the checkpoint"
        )
    if config.problem_type == MULTI_LABEL and not task.is_multi_label:
        raise CheckpointError(
            f"{where} answers each label independently (problem_type {MULTI_LABEL} in config.json), and {task.name} has one "
            "label or score a row; check --task, or add --multi_label"
        )
    if task.is_multi_label and config.problem_type not in (MULTI_LABEL, None):
        raise CheckpointError(
            f"{where} has one label or score a row (problem_type {config.problem_type} in config.json), and {task.name} has "
            "several labels a row; leave --multi_label out, or give another checkpoint"
        )
    if config.problem_type == "regression" and not task.is_regression and not task.per_token:
        raise CheckpointError(
            f"{where} predicts {config.num_labels} scores (problem_type regression in config.json), {task.name} has labels; "
            "check --task or the checkpoint"
        )
    activation_of(config, task, where)
    return label_order(config, task, where)


def problem_type(task: Task) -> str | None:
    """Return transformers' `problem_type` of `task`, which decides the loss of a sequence classifier; None for token heads."""
    if task.per_token:
        return None
    if task.is_multi_label:
        return MULTI_LABEL
    return "regression" if task.is_regression else "single_label_classification"
