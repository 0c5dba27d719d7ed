"""Logits -> the task's answers: a score, or a label with the probability of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from q8trt.engine.manifest import TaskInfo
from q8trt.tasks.metrics import sigmoid


@dataclass(frozen=True)
class Answer:
    """The answer of a classifier to one item.

    Attributes:
        label: the most probable label; of equals the first.
        probabilities: label -> probability, in the order of the logits; they sum to 1.
    """

    label: str
    probabilities: dict[str, float]

    @property
    def score(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]


def answers(logits: np.ndarray, task: TaskInfo) -> list[float] | list[Answer]:
    """Return one answer for each row of `logits` (rows, labels): the score of a regression, else an `Answer`.

    A score is the logit, or its sigmoid where the task's `activation` says so. A logit may lie a little outside the range of
    the labels that the model was trained on.
    """
    if task.is_regression:
        scores = logits[:, 0]
        return [float(score) for score in (sigmoid(scores) if task.activation == "sigmoid" else scores)]
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    rows = (powers / powers.sum(axis=1, keepdims=True)).tolist()
    best = logits.argmax(axis=1).tolist()
    return [
        Answer(task.labels[index], dict(zip(task.labels, row, strict=True)))
        for index, row in zip(best, rows, strict=True)
    ]
