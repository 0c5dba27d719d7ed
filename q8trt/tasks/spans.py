"""The choice of an answer in a text from the logits of its first and last token.

The rules are those of transformers' ``utils_qa.py`` (Devlin et al. 2019, arXiv 1810.04805, sections 4.2 and 4.3), with two
differences: all pairs of tokens are considered, not only those of the best starts and ends; and a span that is in two windows
counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from q8trt.errors import ConfigError


@dataclass(frozen=True)
class SpanOptions:
    """Options for the choice of an answer.

    Attributes:
        max_answer_length: maximum number of tokens of an answer.
        n_best_size: number of best answers over which the softmax of the probability is taken.
        null_score_diff_threshold: a question has no answer if the score of no answer exceeds that of the best answer by
            more than this; None for models that always answer (SQuAD 1.1).

    Raises:
        ConfigError: a number is below 1, or the threshold is not a number.
    """

    max_answer_length: int = 30
    n_best_size: int = 20
    null_score_diff_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_answer_length", "n_best_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.null_score_diff_threshold is not None and np.isnan(self.null_score_diff_threshold):
            raise ConfigError("null_score_diff_threshold must be a number, got NaN")


@dataclass(frozen=True)
class WindowLogits:
    """The logits of one window.

    Attributes:
        start: (T,) float32, the logit of each token of the text to be the first of the answer.
        end: (T,) float32, the logit of each token to be the last of the answer.
        none: the score of no answer: the sum of the start and end logits of the window's first token, [CLS].
        offsets: (T, 2) int32, the first character of each token and the one after its last.
    """

    start: npt.NDArray[np.float32]
    end: npt.NDArray[np.float32]
    none: float
    offsets: npt.NDArray[np.int32]


@dataclass(frozen=True)
class SpanAnswer:
    """The answer to a question: a part of the context, or no answer.

    Attributes:
        text: the answer, ``context[start:end]``; "" for no answer.
        start, end: the index of its first character, and of the one after its last; both 0 for no answer.
        score: its probability among the best answers, 0 to 1.
        null_score_diff: the score of no answer minus that of the best answer, in logits; infinite if the context has no token.
    """

    text: str
    start: int
    end: int
    score: float
    null_score_diff: float

    @property
    def has_answer(self) -> bool:
        """True if the context answers the question."""
        return self.end > self.start


def best_spans(window: WindowLogits, options: SpanOptions) -> list[tuple[float, int, int]]:
    """Return (score, start, end) of the best spans of one window; the score is the sum of two logits, the span in characters."""
    count = len(window.start)
    width = min(options.max_answer_length, count)
    if not count:
        return []
    ends = np.concatenate([window.end.astype(np.float64), np.full(width - 1, -np.inf)])
    scores = window.start.astype(np.float64)[:, None] + np.lib.stride_tricks.sliding_window_view(ends, width)
    best = min(options.n_best_size, scores.size)
    chosen = np.argpartition(scores.ravel(), scores.size - best)[scores.size - best :]
    spans = []
    for index in chosen.tolist():
        first, length = divmod(index, width)
        if first + length < count:
            score = float(scores[first, length])
            spans.append((score, int(window.offsets[first, 0]), int(window.offsets[first + length, 1])))
    return spans


def find_answer(context: str, windows: Iterable[WindowLogits], options: SpanOptions) -> SpanAnswer:
    """Return the best answer over all windows of `context`, without surrounding blanks."""
    scores: dict[tuple[int, int], float] = {}
    none = np.inf
    for window in windows:
        none = min(none, window.none)
        for score, start, end in best_spans(window, options):
            scores[start, end] = max(score, scores.get((start, end), -np.inf))
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[: options.n_best_size]
    threshold = options.null_score_diff_threshold
    difference = none - ranked[0][1] if ranked else np.inf
    if not ranked or (threshold is not None and difference > threshold):
        considered = [none, *(score for _, score in ranked)] if ranked else [0.0]
        return SpanAnswer("", 0, 0, _share(considered), float(difference))
    others = [] if threshold is None else [none]
    probability = _share([*(score for _, score in ranked), *others])
    start, end = _without_blanks(context, *ranked[0][0])
    return SpanAnswer(context[start:end], start, end, probability, float(difference))


def _share(scores: Sequence[float]) -> float:
    """Return the softmax of the first of `scores`."""
    powers = np.exp(np.asarray(scores, np.float64) - max(scores))
    return float(powers[0] / powers.sum())


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the start and end of ``text[start:end].strip()`` in `text`; unchanged if the part has only blanks."""
    part = text[start:end]
    if not part.strip():
        return start, end
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
