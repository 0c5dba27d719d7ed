"""Scoring of a model's outputs, for every kind of head.

A head that answers each token has outputs (tokens, outputs): the tokens of all rows are concatenated, without padding. Other
heads have outputs (rows, outputs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from q8trt.errors import DataError
from q8trt.tasks.data.examples import IGNORED, Features
from q8trt.tasks.data.question_windows import QuestionFeatures
from q8trt.tasks.data.questions import Questions
from q8trt.tasks.heads import HeadKind
from q8trt.tasks.metrics import METRICS, check_finite, compute_from_logits
from q8trt.tasks.spans import SpanOptions
from q8trt.tasks.squad import squad_metrics

Outputs = npt.NDArray[np.float32]


def score(
    rows: Features, outputs: Outputs, reference: Outputs | None = None, activation: str = "identity"
) -> dict[str, float]:
    """Return the metrics of the rows' task, by name.

    Args:
        rows: the rows, with labels if the task has labels.
        outputs: (rows, outputs) float32, or (tokens, outputs) for a head that answers each token.
        reference: the FP32 model's outputs, for a task without labels; None if `outputs` are the FP32 model's.
        activation: see `compute_from_logits`.

    Raises:
        DataError: labels are missing, or outputs have another shape or are not finite.
    """
    task, others = rows.task, outputs if reference is None else reference
    if task.has_labels and rows.labels is None:
        raise DataError(f"{rows.split} has no labels, so nothing can be scored on it")
    if not task.per_token:
        labels = rows.labels if task.has_labels and rows.labels is not None else others
        return compute_from_logits(task, outputs, labels, activation)
    expected = int(rows.lengths.sum()), task.num_labels
    if outputs.shape != expected or others.shape != expected or not len(outputs):
        raise DataError(f"{task.name}: outputs have shape {outputs.shape}, expected {expected} for {len(rows)} rows")
    check_finite(outputs, "tokens' logits")
    by_row: tuple[Sequence[Any], Sequence[Any]] = split_rows(outputs, rows.lengths), split_rows(others, rows.lengths)
    answers = _answer_metrics(rows, *by_row) if isinstance(rows, QuestionFeatures) else {}
    if task.has_labels and task.head.kind is HeadKind.TOKEN_CLASSIFICATION:
        by_row = _tags(rows, by_row[0])
    metrics = {name: METRICS[name] for name in task.metrics if name not in answers}
    drift = {name: each.compute(*(by_row if each.by_row else (outputs, others))) for name, each in metrics.items()}
    return {**answers, **drift}


def _answer_metrics(rows: QuestionFeatures, outputs: Sequence[Outputs], others: Sequence[Outputs]) -> dict[str, float]:
    """Return the metrics of answers to questions, against the right answers or those of the FP32 model."""
    questions = rows.questions
    if isinstance(questions, Questions):
        threshold = 0.0 if questions.has_unanswerable else None
        answers = rows.answers(outputs, SpanOptions(null_score_diff_threshold=threshold))
        references = [[each.text for each in questions.references[number]] for number in answers]
        return squad_metrics([answer.text for answer in answers.values()], references)
    pairs = zip(*(rows.answers(each, SpanOptions()).values() for each in (outputs, others)), strict=True)
    ours, theirs = zip(*pairs, strict=True)
    same = [(a.start, a.end) == (b.start, b.end) for a, b in zip(ours, theirs, strict=True)]
    span_f1 = METRICS["span_f1"].compute([each.text for each in ours], [[each.text] for each in theirs])
    return {"span_agreement": sum(same) / len(same), "span_f1": span_f1}


def _tags(rows: Features, outputs: Sequence[Outputs]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the predicted and the expected tags of the words of each row."""
    names, predicted, expected = rows.task.labels, [], []
    assert rows.labels is not None
    for logits, labels in zip(outputs, rows.labels, strict=True):
        is_word = labels != IGNORED
        predicted.append([names[index] for index in logits[is_word].argmax(axis=1).tolist()])
        expected.append([names[index] for index in labels[is_word].tolist()])
    return predicted, expected


def split_rows(outputs: Outputs, lengths: npt.NDArray[np.int64]) -> Sequence[Outputs]:
    """Split outputs (tokens, outputs) into an array (tokens of the row, outputs) for each row; `lengths` is (rows,)."""
    return np.split(outputs, np.cumsum(lengths)[:-1])
