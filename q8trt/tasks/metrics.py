"""Metrics: GLUE's, as fractions in [-1, 1] (accuracy, F1, Matthews, Pearson, Spearman), and the drift from the FP32 model.

scikit-learn and SciPy compute them. This module defines the cases that they leave open: a correlation with a constant is 0,
and values that are not finite raise an error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from q8trt.errors import DataError
from q8trt.tasks.glue import Task
from q8trt.tasks.squad import exact_match, f1_of_words, mean_over
from q8trt.tasks.tags import entity_metric, token_accuracy

Array = npt.NDArray[np.generic]


def _accuracy(predictions: Array, references: Array) -> float:
    return float(np.mean(predictions == references))


def _f1(predictions: Array, references: Array) -> float:
    """Return the F1 of class 1, as GLUE reports it for MRPC and QQP; 0 if no prediction and no reference is 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, zero_division=0.0))


def _is_constant(values: Array) -> bool:
    return bool(np.all(values == values[0]))


def _correlation(name: str) -> Callable[[Array, Array], float]:
    """Return a function for a correlation that is 0 where its formula gives 0 / 0.

    This happens if one side is constant, or so nearly constant that its variance underflows.
    """

    def correlate(predictions: Array, references: Array) -> float:
        if _is_constant(predictions) or _is_constant(references):
            return 0.0
        if name == "matthews":
            from sklearn.metrics import matthews_corrcoef

            return float(matthews_corrcoef(references, predictions))
        from scipy import stats

        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SciPy warns of nearly constant values
            value = float(_CORRELATIONS[name](stats)(predictions, references)[0])
        return value if math.isfinite(value) else 0.0

    return correlate


_CORRELATIONS: Mapping[str, Callable[[Any], Any]] = {
    "pearson": lambda stats: stats.pearsonr,
    "spearman": lambda stats: stats.spearmanr,
    "kendall": lambda stats: stats.kendalltau,
}
_pearson, _spearman, _kendall = map(_correlation, _CORRELATIONS)


def _average_f1(average: str) -> Callable[[Array, Array], float]:
    """Return a function for F1 over (N, labels) arrays of booleans: "micro" over all values, "macro" as mean over labels."""

    def score(predictions: Array, references: Array) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(references, predictions, average=average, zero_division=0.0))

    return score


def cosines(first: Array, second: Array) -> npt.NDArray[np.float64]:
    """Return the cosines (N,) of the rows of `first` (N, D) with the same rows of `second` (N, D); 0 for a row of zeros."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.maximum(lengths, 1e-30))


def _distances(outputs: Array, references: Array) -> npt.NDArray[np.float64]:
    """Return the largest absolute difference in each row of two (N, D) arrays: (N,)."""
    return np.asarray(np.abs(outputs.astype(np.float64) - references.astype(np.float64)).max(axis=1))


def nearest_shared(outputs: Array, references: Array, count: int = 10) -> float:
    """Return the share of a row's `count` nearest neighbors, by cosine, that both (N, D) arrays have; the mean over rows.

    Only the first `_MOST_NEIGHBORS` rows are compared.
    """
    count = min(count, len(outputs) - 1)
    if count < 1:
        return 1.0
    neighbors = []
    for vectors in (outputs[:_MOST_NEIGHBORS], references[:_MOST_NEIGHBORS]):
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        similarity = units @ units.T
        np.fill_diagonal(similarity, -np.inf)
        neighbors.append(np.argpartition(-similarity, count - 1, axis=1)[:, :count])
    shared = [len(set(a) & set(b)) for a, b in zip(*(each.tolist() for each in neighbors), strict=True)]
    return float(np.mean(shared)) / count


_MOST_NEIGHBORS = 3000


def _decisions(*logits: Array) -> tuple[Array, ...]:
    """Return boolean arrays of the same shapes: whether each logit is above 0, so that the row has the label."""
    return tuple(each.astype(np.float64) > 0 for each in logits)


def _same_ends(outputs: Sequence[Array], references: Sequence[Array]) -> float:
    """Return the share of rows whose most probable start and end are the same tokens in both (T, 2) arrays."""
    pairs = zip(outputs, references, strict=True)
    return float(np.mean([np.array_equal(ours.argmax(axis=0), theirs.argmax(axis=0)) for ours, theirs in pairs]))


class Scale(Enum):
    """The unit in which a metric is displayed: times 100, percent of the answers, or unchanged."""

    X100 = "x100"
    PERCENT = "percent"
    PLAIN = "plain"


@dataclass(frozen=True)
class Metric:
    """A metric of a task.

    Attributes:
        compute: function of (predictions, references), N > 0, that returns the value. Both are (N,) label ids, or scores for
            regression; (N, labels) booleans for several labels a row; for a drift, outputs and those of the FP32 model, (N, D).
        higher_is_better: False for an error.
        is_correlation: the metric is 0 for every model if all references are the same.
        by_row: `compute` takes two lists with an item for each row, for models that answer each token: tags, outputs
            (tokens, D), or answers and their references.
        scale: the unit in which the metric is displayed.
    """

    compute: Callable[[Any, Any], float]
    higher_is_better: bool = True
    is_correlation: bool = False
    by_row: bool = False
    scale: Scale = Scale.X100


#: Name -> metric. A new metric is an entry here and a name in the table of tasks.
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "f1": Metric(_f1),
    "matthews": Metric(_correlation("matthews"), is_correlation=True),
    "pearson": Metric(_pearson, is_correlation=True),
    "spearman": Metric(_spearman, is_correlation=True),
    "corr": Metric(
        lambda predictions, references: (_pearson(predictions, references) + _spearman(predictions, references)) / 2,
        is_correlation=True,
    ),
    "agreement": Metric(
        lambda outputs, others: _accuracy(outputs.argmax(axis=1), others.argmax(axis=1)), scale=Scale.PERCENT
    ),
    "correlation": Metric(lambda outputs, others: _pearson(outputs[:, 0], others[:, 0]), scale=Scale.PLAIN),
    "rank_spearman": Metric(lambda outputs, others: _spearman(outputs[:, 0], others[:, 0]), scale=Scale.PLAIN),
    "rank_kendall": Metric(lambda outputs, others: _kendall(outputs[:, 0], others[:, 0]), scale=Scale.PLAIN),
    "f1_micro": Metric(_average_f1("micro")),
    "f1_macro": Metric(_average_f1("macro")),
    "label_agreement": Metric(lambda *pair: _accuracy(*_decisions(*pair)), scale=Scale.PERCENT),
    "logit_mean": Metric(lambda *pair: float(_distances(*pair).mean()), higher_is_better=False, scale=Scale.PLAIN),
    "logit_p99": Metric(
        lambda *pair: float(np.percentile(_distances(*pair), 99)), higher_is_better=False, scale=Scale.PLAIN
    ),
    "logit_worst": Metric(lambda *pair: float(_distances(*pair).max()), higher_is_better=False, scale=Scale.PLAIN),
    "cosine_mean": Metric(lambda *pair: float(cosines(*pair).mean()), scale=Scale.PLAIN),
    "cosine_p1": Metric(lambda *pair: float(np.percentile(cosines(*pair), 1)), scale=Scale.PLAIN),
    "cosine_worst": Metric(lambda *pair: float(cosines(*pair).min()), scale=Scale.PLAIN),
    "neighbors_10": Metric(nearest_shared, scale=Scale.PERCENT),
    "span_agreement": Metric(_same_ends, by_row=True, scale=Scale.PERCENT),
    "answer_f1": Metric(partial(mean_over, f1_of_words), by_row=True),
    "exact_match": Metric(partial(mean_over, exact_match), by_row=True),
    "span_f1": Metric(partial(mean_over, f1_of_words), by_row=True),
    "entity_f1": Metric(entity_metric("f1_score"), by_row=True),
    "entity_precision": Metric(entity_metric("precision_score"), by_row=True),
    "entity_recall": Metric(entity_metric("recall_score"), by_row=True),
    "token_accuracy": Metric(token_accuracy, by_row=True),
}


def direction(metric: str) -> int:
    """Return 1 if higher values of the metric are better, -1 if lower values are.

    So ``direction(metric) * (reference - value)`` is the loss of `value`. An unknown metric, such as one in a report of a
    later version, has 1.
    """
    return -1 if metric in METRICS and not METRICS[metric].higher_is_better else 1


def scale_of(metric: str) -> Scale:
    """Return the scale of `metric`, also for a name with a split (``"dev_mismatched.accuracy"``); X100 for an unknown one."""
    name = metric.rpartition(".")[2]
    return METRICS[name].scale if name in METRICS else Scale.X100


def check_finite(values: Array, name: str) -> None:
    """Raise DataError if rows of `values` contain NaN or infinity; `name` is the noun for the rows in the error."""
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{len(bad)} of {len(values)} {name} are not finite, the first in row {bad[0]}")


def compute(task: Task, predictions: npt.ArrayLike, references: npt.ArrayLike) -> dict[str, float]:
    """Return the metrics of `task`, by name.

    Args:
        task: the task, whose metrics are computed.
        predictions, references: (N,) label ids, or scores for regression.

    Raises:
        DataError: there are no rows, the shapes differ or are not (N,), values are not finite, or label ids are fractions.
    """
    dtype = np.float64 if task.is_regression else np.int64
    predicted, expected = np.asarray(predictions), np.asarray(references)
    if predicted.ndim != 1 or predicted.shape != expected.shape or not len(predicted):
        raise DataError(
            f"{task.name}: predictions {predicted.shape} and references {expected.shape} must both be (N,), N > 0"
        )
    check_finite(predicted, "predictions")
    check_finite(expected, "references")
    if not task.is_regression and (
        np.any(predicted != predicted.astype(dtype)) or np.any(expected != expected.astype(dtype))
    ):
        raise DataError(f"{task.name}: predictions and references must be label ids, got fractions (logits?)")
    return {name: METRICS[name].compute(predicted.astype(dtype), expected.astype(dtype)) for name in task.metrics}


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return the sigmoid of logits as float32, as torch computes it; large logits do not overflow."""
    powers = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers)).astype(np.float32)


def compute_from_logits(
    task: Task, logits: npt.ArrayLike, labels: npt.ArrayLike, activation: str = "identity"
) -> dict[str, float]:
    """Return the metrics of a model's logits, by name.

    The prediction is the argmax for classification and the logit for regression. With several labels a row, it is the set of
    labels whose logit is above 0, that is, whose probability is above 0.5. For embeddings, rows 2i and 2i + 1 are a pair, and
    the prediction is their cosine.

    Args:
        task: the task, with its metrics and the number of labels.
        logits: (N, num_labels) float; for regression also (N,).
        labels: (N,) int for classification, float for regression; (N, num_labels) of 0 and 1 for several labels a row; for a
            task without labels, the FP32 model's logits (N, num_labels).
        activation: "sigmoid" if the prediction of a regression is the sigmoid of its logit; Pearson's correlation depends on it.

    Raises:
        DataError: the shape does not fit the task, or a logit is not finite.
    """
    scores = np.asarray(logits)
    if task.num_labels == 1 and scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or scores.shape[1] != task.num_labels or not len(scores):
        raise DataError(f"{task.name}: logits have shape {np.shape(logits)}, expected (N, {task.num_labels}), N > 0")
    check_finite(scores, "rows of logits")
    if task.is_multi_label or not task.has_labels:
        references = np.asarray(labels)
        if references.shape != scores.shape:
            others = "the labels" if task.has_labels else "those of the FP32 model"
            raise DataError(f"{task.name}: outputs {scores.shape} and {others} {references.shape} differ in shape")
        if task.has_labels:
            scores, references = _decisions(scores, references)
        return {name: METRICS[name].compute(scores, references) for name in task.metrics}
    if task.embedding:
        pairs = len(scores) // 2
        similarities = cosines(scores[: 2 * pairs : 2], scores[1 : 2 * pairs : 2])
        return compute(task, similarities, np.asarray(labels)[: 2 * pairs : 2])
    if not task.is_regression:
        return compute(task, scores.argmax(axis=1), labels)
    return compute(task, sigmoid(scores[:, 0]) if activation == "sigmoid" else scores[:, 0], labels)
