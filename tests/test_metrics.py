import warnings
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from q8trt.errors import DataError
from q8trt.tasks.glue import custom_task, get_task
from q8trt.tasks.metrics import METRICS, Metric, compute, compute_from_logits, direction

RNG = np.random.default_rng(3)


def test_f1_and_accuracy_by_hand():
    # 3 true positives, 1 false positive, 2 false negatives, 2 true negatives: F1 = 6 / (6 + 1 + 2), accuracy 5 / 8.
    predictions, references = [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0]
    assert compute(get_task("MRPC"), predictions, references) == {
        "f1": pytest.approx(6 / 9, abs=1e-12),
        "accuracy": 5 / 8,
    }


def test_matthews_by_hand():
    # TP 3, TN 2, FP 1, FN 2: (6 - 2) / sqrt(4 * 5 * 3 * 4).
    value = compute(get_task("CoLA"), [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0])
    assert value == {"matthews": pytest.approx(4 / 240**0.5, abs=1e-12)}


def test_classification_against_scikit_learn():
    references, predictions = RNG.integers(0, 2, 200), RNG.integers(0, 2, 200)
    found = compute(get_task("QQP"), predictions, references)
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(references, predictions), abs=1e-12)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(references, predictions), abs=1e-12)


def test_regression_against_scipy():
    references = RNG.uniform(0, 5, 100)
    predictions = references + RNG.normal(0, 1, 100)
    found = compute(get_task("STS-B"), predictions, references)
    pearson, spearman = (
        scipy.stats.pearsonr(predictions, references).statistic,
        scipy.stats.spearmanr(predictions, references).statistic,
    )
    assert list(found) == ["pearson", "spearman", "corr"]
    assert found["pearson"] == pytest.approx(pearson, abs=1e-12)
    assert found["spearman"] == pytest.approx(spearman, abs=1e-12)
    assert found["corr"] == pytest.approx((pearson + spearman) / 2, abs=1e-12)
    assert pearson != pytest.approx(spearman, abs=1e-3)  # else the test could not tell them apart


@pytest.mark.parametrize(
    ("name", "predictions", "references"),
    [
        ("STS-B", [2.5, 2.5, 2.5], [0.0, 1.0, 5.0]),
        ("STS-B", [0.0, 1.0, 5.0], [2.5, 2.5, 2.5]),
        ("STS-B", [1.0], [1.0]),
        ("CoLA", [1, 1, 1], [0, 1, 1]),
        ("CoLA", [1, 1, 1], [1, 1, 1]),
    ],
)
def test_a_constant_correlates_with_nothing_and_nothing_warns(name, predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(compute(get_task(name), predictions, references).values()) == {0.0}


def test_f1_without_any_positive_is_zero_and_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute(get_task("MRPC"), [0, 0], [0, 0]) == {"f1": 0.0, "accuracy": 1.0}


def test_logits_of_classes():
    logits = np.array([[0.1, 0.2, 0.0], [3.0, -1.0, 2.0], [0.0, 0.0, 0.1]], dtype=np.float16)
    assert compute_from_logits(get_task("MNLI"), logits, [1, 2, 2]) == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_logits_of_a_score(shape):
    logits = np.array([0.0, 1.0, 2.0, 4.0], dtype=np.float32).reshape(shape)
    found = compute_from_logits(get_task("STS-B"), logits, np.array([0, 2, 4, 8], dtype=np.float32))
    assert found["pearson"] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("task", "logits", "labels", "message"),
    [
        ("MRPC", np.zeros((4, 3)), [0] * 4, r"MRPC: logits have shape \(4, 3\), expected \(N, 2\), N > 0"),
        ("MRPC", np.zeros(4), [0] * 4, r"logits have shape \(4,\), expected \(N, 2\)"),
        ("STS-B", np.zeros((0, 1)), [], r"logits have shape \(0, 1\)"),
        (
            "MRPC",
            [[0, 1], [np.nan, 1], [0, np.inf]],
            [0] * 3,
            "2 of 3 rows of logits are not finite, the first in row 1",
        ),
        ("STS-B", [0.0, 1.0], [0.0], r"predictions \(2,\) and references \(1,\) must both be \(N,\)"),
        ("STS-B", [0.0, 1.0], [0.0, np.nan], "1 of 2 references are not finite, the first in row 1"),
    ],
)
def test_what_is_refused(task, logits, labels, message):
    with pytest.raises(DataError, match=message):
        compute_from_logits(get_task(task), logits, labels)


def test_probabilities_are_not_taken_for_label_ids():
    with pytest.raises(DataError, match="must be label ids, got fractions"):
        compute(get_task("SST-2"), [0.2, 0.9], [0, 1])


def test_custom_task_of_three_classes():
    task = custom_task("topics", ["a", "b", "c"], is_pair=False)
    assert compute(task, [0, 1, 2, 2], [0, 1, 2, 0]) == {"accuracy": 0.75}


def test_direction_of_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(Any, METRICS), "rmse", Metric(lambda a, b: 0.0, higher_is_better=False))
    assert [direction(name) for name in ("pearson", "rmse", "of a later version")] == [1, -1, 1]
