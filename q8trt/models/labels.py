"""Matching the names of a head's outputs with the labels of a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from q8trt.errors import CheckpointError
from q8trt.quantization.sites import classifier_of
from q8trt.tasks.glue import canonical

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from q8trt.tasks.glue import Task


def label_order(config: Any, task: Task, where: str) -> tuple[int, ...] | None:
    """Return, for each label of `task`, the index of the head's output with that name; None if the orders are the same.

    Names are compared without case, hyphens, underscores and spaces. Outputs without names (LABEL_0 or just the number) are
    in the task's order.

    Raises:
        CheckpointError: the names of the outputs and of the labels differ.
    """
    if not task.labels:
        return None
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    theirs, ours = _comparable(names, task.labels)
    if theirs == ours:
        return None
    if Counter(theirs) == Counter(ours):
        return tuple(theirs.index(label) for label in ours)
    if all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(names)):
        return None
    example = ", ".join(f'"{number}": "{label}"' for number, label in enumerate(task.labels))
    raise CheckpointError(
        f"{where} names its outputs {', '.join(names)}, and the task's labels are {', '.join(task.labels)}, so q8trt cannot "
        f"match them; use the model's names in the data and in --label_list, or rename them in its config.json, for example "
        f'"id2label": {{{example}}} if they are in this order'
    )


def _comparable(names: Sequence[str], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return both lists in canonical form; unchanged if that would make two names of a list equal."""
    theirs, ours = [canonical(name) for name in names], [canonical(label) for label in labels]
    ambiguous = len(set(theirs)) < len(theirs) or len(set(ours)) < len(ours)
    return (list(names), list(labels)) if ambiguous else (theirs, ours)


def reorder_head(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Reorder the outputs of `model`, in place: new output i is old output `order[i]`."""
    import torch

    head: Any = model.get_submodule(classifier_of(model) or "")
    index = torch.tensor(order)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[index].clone())
