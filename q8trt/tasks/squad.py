"""SQuAD's metrics, as fractions: exact match and F1 of answers as bags of words.

Sources: Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1, and 2018 (arXiv 1806.03822). The normalization is that of the
official ``evaluate-v2.0.py``.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from q8trt.errors import DataError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return `text` in lower case, without ASCII punctuation and the articles a, an and the, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 if two answers are equal after `normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def f1_of_words(prediction: str, reference: str) -> float:
    """Return the F1 of the words of two answers; if one has no words, 1 if both have none, else 0."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def mean_over(
    metric: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Return the mean over questions of the best value of `metric` over the right answers of each.

    Args:
        metric: function of (answer, right answer) that returns the value.
        predictions: N answers; "" for no answer.
        references: for each question its right answers; () for no answer.

    Raises:
        DataError: there are no questions, or the numbers of predictions and references differ.
    """
    if not predictions or len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} answers to {len(references)} questions; expected one to each, and 1 or more"
        )
    pairs = zip(predictions, references, strict=True)
    return sum(max(metric(text, each) for each in _right_answers(right)) for text, right in pairs) / len(predictions)


def squad_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``answer_f1`` and ``exact_match``, means over questions; see `mean_over`.

    If only some of the questions have an answer, the means of each kind are also returned: ``has_answer_f1``,
    ``has_answer_exact``, ``no_answer_f1`` and ``no_answer_exact``.
    """
    metrics = {
        "answer_f1": mean_over(f1_of_words, predictions, references),
        "exact_match": mean_over(exact_match, predictions, references),
    }
    kinds: dict[str, list[int]] = {"has_answer": [], "no_answer": []}
    for index, right in enumerate(references):
        kinds["no_answer" if _right_answers(right) == [""] else "has_answer"].append(index)
    if all(kinds.values()):
        for name, rows in kinds.items():
            chosen = [predictions[row] for row in rows], [references[row] for row in rows]
            metrics |= {
                f"{name}_f1": mean_over(f1_of_words, *chosen),
                f"{name}_exact": mean_over(exact_match, *chosen),
            }
    return metrics


def _right_answers(references: Sequence[str]) -> list[str]:
    """Return the right answers that contain words; [""] if none does."""
    return [text for text in references if normalize_answer(text)] or [""]
