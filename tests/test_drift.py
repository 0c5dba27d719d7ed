"""Metrics of embeddings, and of outputs that are compared with the FP32 model's."""

from __future__ import annotations

import numpy as np
import pytest

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.glue import get_task, task_of_head
from q8trt.tasks.heads import Embedding, Head, HeadKind
from q8trt.tasks.metrics import compute_from_logits, nearest_shared

EMBEDDING = Head(HeadKind.EMBEDDING, embedding=Embedding(5))
LABELS = Head(HeadKind.SEQUENCE_CLASSIFICATION, ("a", "b", "c"))
RANDOM = np.random.default_rng(0)


def test_embeddings_are_scored_by_the_rank_of_their_cosines() -> None:
    from scipy import stats

    vectors, scores = RANDOM.normal(size=(40, 5)).astype(np.float32), RANDOM.uniform(0, 5, 20)
    task = task_of_head(EMBEDDING, is_pair=True, has_labels=True, glue=get_task("STS-B"))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    metrics = compute_from_logits(task, vectors, scores.repeat(2))
    assert list(metrics) == ["spearman", "pearson"]
    assert task.main_metric == "spearman"
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(cosines, scores)[0])
    with pytest.raises(ConfigError, match="pairs of texts with their similarity, and MRPC has other rows"):
        task_of_head(EMBEDDING, is_pair=True, has_labels=True, glue=get_task("MRPC"))


def test_the_drift_of_embeddings() -> None:
    reference = RANDOM.normal(size=(200, 5)).astype(np.float32)
    outputs = (reference * 3 + RANDOM.normal(size=reference.shape) * 0.3).astype(np.float32)
    outputs[7] = -reference[7]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(outputs, reference, strict=True)]
    metrics = compute_from_logits(task_of_head(EMBEDDING, False, has_labels=False), outputs, reference)
    assert metrics["cosine_mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert metrics["cosine_p1"] == pytest.approx(np.percentile(cosines, 1), abs=1e-6)
    assert metrics["cosine_worst"] == pytest.approx(-1)
    assert 0 < metrics["neighbors_10"] < 1


def two_nearest(units: np.ndarray, row: int) -> set[int]:
    others = [other for other in range(len(units)) if other != row]
    return set(sorted(others, key=lambda other: -float(units[row] @ units[other]))[:2])


def test_shared_neighbors() -> None:
    angles = np.linspace(0, 3, 30)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert nearest_shared(circle, circle * 5) == 1
    # the order along the circle stays, so do the two neighbors of each point within it
    assert nearest_shared(circle, np.stack([np.cos(angles / 2), np.sin(angles / 2)], axis=1), count=2) > 0.9
    far = np.concatenate([circle[::2], circle[1::2]])
    shared = [len(two_nearest(circle, row) & two_nearest(far, row)) for row in range(30)]
    expected = np.mean(shared) / 2
    assert nearest_shared(circle, far, count=2) == pytest.approx(expected, abs=0.07)


def test_the_drift_of_logits() -> None:
    reference = np.float32([[1, 2, 3], [3, 2, 1], [0, 0, 5], [5, 0, 0]])
    outputs = reference + np.float32([[0, 0, 0], [0, 0.5, 0], [0, 0, -0.25], [-5, 0, 1]])
    metrics = compute_from_logits(task_of_head(LABELS, False, has_labels=False), outputs, reference)
    assert metrics["agreement"] == 0.75
    assert metrics["logit_mean"] == pytest.approx((0.5 + 0.25 + 5) / 4)
    assert metrics["logit_worst"] == 5
    regression = task_of_head(Head(HeadKind.REGRESSION), False, has_labels=False)
    assert compute_from_logits(regression, reference[:, :1] * 2 + 1, reference[:, :1])["correlation"] == pytest.approx(
        1
    )
    with pytest.raises(DataError, match="differ in shape"):
        compute_from_logits(regression, reference[:, :1], reference)
