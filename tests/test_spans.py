"""The best span of windows against brute force, no answer, and SQuAD's metrics against figures worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.spans import SpanAnswer, SpanOptions, WindowLogits, find_answer
from q8trt.tasks.squad import exact_match, f1_of_words, normalize_answer, squad_metrics

CONTEXT = "one two three four five six seven eight nine ten eleven twelve"
WORDS = CONTEXT.split()
OFFSETS = np.array([(CONTEXT.index(word), CONTEXT.index(word) + len(word)) for word in WORDS], np.int32)


def windows(generator: np.random.Generator, count: int, size: int = 7) -> list[WindowLogits]:
    """Overlapping windows of random logits over CONTEXT."""
    starts = [min(3 * number, len(WORDS) - size) for number in range(count)]
    return [
        WindowLogits(*generator.normal(size=(2, size)).astype(np.float32), float(generator.normal() - 1), OFFSETS[s : s + size])
        for s in starts
    ]  # fmt: skip


def brute_force(all_windows: list[WindowLogits], options: SpanOptions) -> tuple[str, float, float]:
    """The text, probability and null_score_diff of the answer, from all pairs of tokens, one at a time."""
    scores: dict[str, float] = {}
    for window in all_windows:
        for i, j in itertools.product(range(len(window.start)), repeat=2):
            if i <= j < i + options.max_answer_length:
                text = CONTEXT[window.offsets[i, 0] : window.offsets[j, 1]]
                scores[text] = max(scores.get(text, -math.inf), float(window.start[i]) + float(window.end[j]))
    best = sorted(scores, key=lambda text: -scores[text])[: options.n_best_size]
    none = min(window.none for window in all_windows)
    threshold = options.null_score_diff_threshold
    ranked = {text: scores[text] for text in best} | ({} if threshold is None else {"": none})
    chosen = "" if threshold is not None and none - scores[best[0]] > threshold else best[0]
    share = math.exp(ranked[chosen]) / sum(math.exp(score) for score in ranked.values())
    return chosen, share, none - scores[best[0]]


@pytest.mark.parametrize("threshold", [None, -3.0, 0.0])
@pytest.mark.parametrize("length", [1, 3, 30])
@pytest.mark.parametrize("n_best", [1, 4, 1000])
def test_the_answer_is_that_of_brute_force(threshold: float | None, length: int, n_best: int) -> None:
    generator = np.random.default_rng(3)
    options = SpanOptions(length, n_best, threshold)
    chosen = set()
    for _ in range(30):
        some = windows(generator, 3)
        answer = find_answer(CONTEXT, some, options)
        text, share, difference = brute_force(some, options)
        assert (answer.text, answer.has_answer) == (text, bool(text))
        assert answer.text == CONTEXT[answer.start : answer.end]
        assert (answer.score, answer.null_score_diff) == pytest.approx((share, difference))
        chosen.add(bool(text))
    assert chosen == ({True, False} if threshold == -3.0 else {True} if threshold is None else chosen)


def test_a_span_in_two_windows_counts_once_with_its_higher_score() -> None:
    def window(first: int, start: list[float], end: list[float]) -> WindowLogits:
        return WindowLogits(np.float32(start), np.float32(end), -9.0, OFFSETS[first : first + 2])

    same = [window(1, [0, 5], [0, 4]), window(2, [3, 0], [3, 0])]  # "three" is the second token, then the first
    answer = find_answer(CONTEXT, same, SpanOptions(1, 20))
    assert (answer.text, answer.null_score_diff) == ("three", -18.0)
    assert answer.score == pytest.approx(math.exp(9) / (math.exp(9) + 2))  # two and four have 0


def test_blanks_around_an_answer_are_left_out_and_texts_without_tokens_have_none() -> None:
    spaced = WindowLogits(np.float32([1, 0]), np.float32([0, 1]), 0.0, np.int32([(3, 7), (7, 14)]))
    assert find_answer(CONTEXT, [spaced], SpanOptions()).text == "two three"
    empty = WindowLogits(np.float32([]), np.float32([]), 1.5, np.zeros((0, 2), np.int32))
    assert find_answer("\u200b", [empty], SpanOptions()) == SpanAnswer("", 0, 0, 1.0, math.inf)
    for options in ({"max_answer_length": 0}, {"n_best_size": 0}, {"null_score_diff_threshold": math.nan}):
        with pytest.raises(ConfigError):
            SpanOptions(**options)


def test_normalization_is_that_of_squad() -> None:
    assert normalize_answer("The  U.S.A.'s a-team, an\tanswer\nof the day") == "usas ateam answer of day"
    assert normalize_answer("A the an !?") == ""
    assert normalize_answer("Theatre anthem") == "theatre anthem"  # whole words alone are articles


def test_metrics_by_hand() -> None:
    assert exact_match("The cat!", "cat") == 1
    assert exact_match("cats", "cat") == 0
    assert f1_of_words("the big red cat", "a red cat") == pytest.approx(0.8)  # 2 of 3 and 2 of 2
    assert f1_of_words("cat cat", "cat dog dog") == pytest.approx(2 / 5)  # a word counts as often as in both
    assert f1_of_words("dog", "cat") == 0
    assert f1_of_words("the", "") == 1
    assert f1_of_words("the", "cat") == 0
    predictions = ["big red cat", "", "dog", "bird"]
    references = [("red cat", "cat"), (), (), ("the", "a bird")]
    metrics = squad_metrics(predictions, references)
    assert metrics == pytest.approx(
        {
            "exact_match": 0.5, "answer_f1": (0.8 + 1 + 0 + 1) / 4, "has_answer_exact": 0.5, "has_answer_f1": 0.9,
            "no_answer_exact": 0.5, "no_answer_f1": 0.5,
        }
    )  # fmt: skip
    assert squad_metrics(["cat"], [("cat",)]) == {"exact_match": 1.0, "answer_f1": 1.0}
    assert squad_metrics([""], [()]) == {"exact_match": 1.0, "answer_f1": 1.0}
    for wrong in (([], []), (["a"], [])):
        with pytest.raises(DataError):
            squad_metrics(*wrong)
