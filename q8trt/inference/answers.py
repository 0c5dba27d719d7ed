"""Answers of a task from logits: a score, a label with probabilities, or a set of labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from q8trt.engine.manifest import TaskInfo
from q8trt.errors import ConfigError
from q8trt.tasks.heads import HeadKind
from q8trt.tasks.metrics import sigmoid

#: Default probability above which an item has a label.
THRESHOLD = 0.5


@dataclass(frozen=True)
class Answer:
    """The answer of a classifier to one item.

    Attributes:
        label: the most probable label; the first one if several are equal.
        probabilities: label -> probability, in the order of the logits; they sum to 1.
    """

    label: str
    probabilities: dict[str, float]

    @property
    def score(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class LabelSet:
    """The answer of a multi-label classifier to one item, which may have any number of labels.

    Attributes:
        probabilities: label -> probability, in the order of the logits. Each is from 0 to 1, and they need not sum to 1.
        threshold: probability above which the item has a label.

    Raises:
        ConfigError: the threshold is not from 0 to 1.
    """

    probabilities: dict[str, float]
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the item, in the order of the logits."""
        return tuple(label for label, probability in self.probabilities.items() if probability > self.threshold)


def check_threshold(threshold: float | None, kind: HeadKind = HeadKind.MULTI_LABEL_CLASSIFICATION) -> float:
    """Return the threshold, `THRESHOLD` for None. Raises ConfigError if it is not from 0 to 1 or does not apply to `kind`."""
    if threshold is None:
        return THRESHOLD
    if kind is not HeadKind.MULTI_LABEL_CLASSIFICATION:
        raise ConfigError(
            f"threshold is for a multi-label classifier, and the engine's head is for {kind}; leave it out"
        )
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold {threshold}, expected 0 to 1")
    return threshold


def answers(
    logits: np.ndarray, task: TaskInfo, kind: HeadKind | None = None, threshold: float = THRESHOLD
) -> list[float] | list[Answer] | list[LabelSet]:
    """Return one answer for each row of logits.

    Args:
        logits: float32 (rows, labels).
        task: the engine's task.
        kind: kind of the engine's head; None for a classification with one label, or a regression.
        threshold: see `LabelSet`.

    Returns:
        scores of a regression or a reranker, see `scores_of`; an `Answer` for each row of a classification; a `LabelSet` for
        each row of a multi-label classification.
    """
    if task.is_regression:
        return scores_of(logits[:, 0], task)
    if kind is HeadKind.MULTI_LABEL_CLASSIFICATION:
        rows = sigmoid(logits).tolist()
        return [LabelSet(dict(zip(task.labels, row, strict=True)), threshold) for row in rows]
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    rows = (powers / powers.sum(axis=1, keepdims=True)).tolist()
    best = logits.argmax(axis=1).tolist()
    return [
        Answer(task.labels[index], dict(zip(task.labels, row, strict=True)))
        for index, row in zip(best, rows, strict=True)
    ]


def scores_of(logits: np.ndarray, task: TaskInfo) -> list[float]:
    """Return the score of each of the logits (rows,): the logit, or its sigmoid if the task's `activation` is a sigmoid.

    A logit may be slightly outside the range of the training labels.
    """
    return [float(score) for score in (sigmoid(logits) if task.activation == "sigmoid" else logits)]
