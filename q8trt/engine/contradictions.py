"""Facts of a manifest that must agree with each other, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from q8trt.engine.shapes import show

if TYPE_CHECKING:
    from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo

#: The inputs of BERT-like models.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield what contradicts itself in a manifest, one line each."""
    yield from _task(manifest.task, manifest.model)
    yield from _shapes(manifest)
    inputs = manifest.inputs
    if len(set(inputs)) != len(inputs) or "input_ids" not in inputs or not set(inputs) <= set(INPUTS):
        yield f"inputs must be input_ids and others of {', '.join(INPUTS)}, each once; they are {inputs}"


def _task(task: TaskInfo, model: ModelInfo) -> Iterator[str]:
    if task.is_regression:
        if task.labels:
            yield f"task.is_regression is true, but task.labels has {len(task.labels)} names"
        if model.num_labels != 1:
            yield f"task.is_regression is true, but model.num_labels is {model.num_labels}"
    elif len(task.labels) != model.num_labels:
        yield f"task.labels has {len(task.labels)} names, but model.num_labels is {model.num_labels}"
    if len(set(task.labels)) != len(task.labels) or not all(label.strip() for label in task.labels):
        yield f"task.labels must be different names, none of them empty; they are {task.labels}"
    if task.activation != "identity" and not task.is_regression:
        yield f"task.activation is {task.activation}, but the task is a classification"
    if task.text_columns and len(task.text_columns) != 1 + task.is_pair:
        yield f"task.text_columns has {len(task.text_columns)} names, but task.is_pair is {str(task.is_pair).lower()}"


def _shapes(manifest: Manifest) -> Iterator[str]:
    model = manifest.model
    if model.max_seq_length > model.max_position_embeddings:
        yield (
            f"model.max_seq_length is {model.max_seq_length}, but model.max_position_embeddings is "
            f"{model.max_position_embeddings}"
        )
    for index, profile in enumerate(manifest.profiles):
        if profile.max[1] > model.max_position_embeddings:
            yield (
                f"profiles[{index}].max is {show(profile.max)}, but model.max_position_embeddings is "
                f"{model.max_position_embeddings}"
            )
