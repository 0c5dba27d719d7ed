"""SQuAD's metrics, as fractions: exact match and F1 of answers as bags of words.

Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1, and 2018 (arXiv 1806.03822); the normalization is that of the official
``evaluate-v2.0.py``.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from q8trt.errors import DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return `text` in lower case, without ASCII punctuation and the articles a, an and the, blanks as single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 where two answers are equal after `normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def f1_of_words(prediction: str, reference: str) -> float:
    """Return the F1 of the words of two answers; of answers without words, 1 where both have none and 0 else."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def best_over(metric: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    """Return the best value of `metric` over the right answers; a question without any expects ""."""
    answers = [text for text in references if normalize_answer(text)] or [""]
    return max(metric(prediction, each) for each in answers)


def squad_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``exact_match`` and ``answer_f1``, means over questions.

    Where some questions have no answer and others have, also the means of each kind: ``has_answer_exact``, ``has_answer_f1``,
    ``no_answer_exact`` and ``no_answer_f1``.

    Args:
        predictions: N answers; "" for none.
        references: for each question its right answers; () for none.

    Raises:
        DataError: no questions, or numbers that differ.
    """
    if not predictions or len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} answers to {len(references)} questions; expected one to each, and 1 or more"
        )
    exact, f1 = (
        np.array([best_over(metric, *pair) for pair in zip(predictions, references, strict=True)])
        for metric in (exact_match, f1_of_words)
    )
    metrics = {"exact_match": float(exact.mean()), "answer_f1": float(f1.mean())}
    has_answer = np.array([any(map(normalize_answer, each)) for each in references])
    if has_answer.any() and not has_answer.all():
        for name, rows in (("has_answer", has_answer), ("no_answer", ~has_answer)):
            metrics |= {f"{name}_exact": float(exact[rows].mean()), f"{name}_f1": float(f1[rows].mean())}
    return metrics
