"""Names of a head's outputs, and how they compare with the labels of a task."""

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
    """Return, for each label of `task`, the number of the output that means it; None if both stand in one order.

    Names are compared without case, hyphens, underscores and spaces. A head whose outputs have no names (LABEL_0, or their
    number) has the task's order.

    Raises:
        CheckpointError: the outputs have other names than the labels.
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
        f"{where} names its outputs {', '.join(names)}, the task has {', '.join(task.labels)}, and q8trt cannot tell which "
        f"means which: use its names in the data and in --label_list, or rename them in its config.json, for example "
        f'"id2label": {{{example}}} if they stand in this order'
    )


def _comparable(names: Sequence[str], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return both lists in the form in which they are compared: as they are where two names would become one."""
    theirs, ours = [canonical(name) for name in names], [canonical(label) for label in labels]
    ambiguous = len(set(theirs)) < len(theirs) or len(set(ours)) < len(ours)
    return (list(names), list(labels)) if ambiguous else (theirs, ours)


def reorder_head(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Put the outputs of `model` into another order, in place: output i becomes what `order[i]` was."""
    import torch

    head: Any = model.get_submodule(classifier_of(model) or "")
    index = torch.tensor(order)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[index].clone())
