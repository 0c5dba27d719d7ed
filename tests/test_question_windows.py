"""Windows of questions: the labels of transformers' `run_qa.py`, and answers from their logits."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import WORDS, make_tokenizer

from q8trt.errors import ConfigError
from q8trt.tasks.data import counted
from q8trt.tasks.data.question_windows import QuestionFeatures, question_windows
from q8trt.tasks.data.questions import Questions, Reference
from q8trt.tasks.glue import custom_task
from q8trt.tasks.spans import SpanOptions


def questions(count: int = 12) -> Questions:
    """Questions about contexts of up to 150 words, some without an answer."""
    generator = random.Random(11)
    contexts, references = [], []
    for number in range(count):
        words = generator.choices([*WORDS, "x-ray", "o'clock"], k=generator.randrange(3, 150))
        context = " ".join(words)
        first = generator.randrange(len(words))
        start = len(" ".join(words[:first])) + bool(first)
        text = " ".join(words[first : first + generator.randrange(1, 4)])
        contexts.append(context)
        references.append((Reference(text, start), Reference(words[0], 0)) if number % 4 else ())
    return Questions(
        task=custom_task("qa", (), is_pair=True),
        split="dev",
        source="test",
        first=[f"what is it number {number}?" for number in range(count)],
        second=contexts,
        labels=None,
        references=references,
    )


def run_qa_labels(rows: Questions, length: int) -> list[tuple[int, int]]:
    """`prepare_train_features` of transformers' run_qa.py."""
    encoded = make_tokenizer()(
        rows.first, rows.second, truncation="only_second", max_length=length, stride=length // 4,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    labels = []
    for index, sample in enumerate(encoded["overflow_to_sample_mapping"]):
        offsets, sequence = encoded["offset_mapping"][index], encoded.sequence_ids(index)
        if not rows.references[sample]:
            labels.append((0, 0))
            continue
        start_char = rows.references[sample][0].start
        end_char = start_char + len(rows.references[sample][0].text)
        first, last = sequence.index(1), len(sequence) - 1 - sequence[::-1].index(1)
        if not (offsets[first][0] <= start_char and offsets[last][1] >= end_char):
            labels.append((0, 0))
            continue
        while first < len(offsets) and offsets[first][0] <= start_char:
            if sequence[first] != 1:
                break
            first += 1
        while offsets[last][1] >= end_char and sequence[last] == 1:
            last -= 1
        labels.append((first - 1, last + 1))
    return labels


def features(rows: Questions, monkeypatch: pytest.MonkeyPatch, length: int = 40) -> QuestionFeatures:
    from q8trt.tasks.data import question_windows as module
    from q8trt.tasks.data.windows import WindowSizes

    monkeypatch.setattr(module, "WindowSizes", lambda max_length: WindowSizes(max_length, max_length // 4, 64))
    return question_windows(rows, make_tokenizer(), length)


def test_labels_are_those_of_run_qa(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = questions()
    windows = features(rows, monkeypatch)
    assert windows.labels is not None
    assert [tuple(pair) for pair in windows.labels.tolist()] == run_qa_labels(rows, 40)
    answered = [index for index, pair in enumerate(windows.labels.tolist()) if pair != [0, 0]]
    assert 0 < len(answered) < len(windows)
    for index in answered:
        first, last = windows.labels[index] - windows.places[index]
        context = rows.second[windows.rows[index]]
        text = context[windows.offsets[index][first, 0] : windows.offsets[index][last, 1]]
        assert text == rows.references[windows.rows[index]][0].text


def one_hot(windows: QuestionFeatures) -> list[Any]:
    """Logits that say what the labels say; "no answer" is said with less certainty."""
    assert windows.labels is not None
    logits = [np.zeros((length, 2), np.float32) for length in windows.lengths]
    for each, (start, end) in zip(logits, windows.labels.tolist(), strict=True):
        each[start, 0] = each[end, 1] = 9 if start else 4
    return logits


def test_answers_of_windows_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = questions()
    windows = features(rows, monkeypatch)
    answers = windows.answers(one_hot(windows), SpanOptions(null_score_diff_threshold=0.0))
    assert [answers[number].text for number in range(len(rows))] == [
        references[0].text if references else "" for references in rows.references
    ]
    some = windows.select([0, len(windows) - 1])
    assert [*some.answers(one_hot(some), SpanOptions())] == [0, len(rows) - 1]
    assert windows.take(3).input_ids == windows.input_ids[:3]
    assert len(windows.take(None)) == len(windows)


def test_lengths_that_do_not_fit_are_refused() -> None:
    for length in (4, 65):
        with pytest.raises(ConfigError, match="max_seq_length"):
            question_windows(questions(1), make_tokenizer(), length)


def test_an_answer_that_begins_or_ends_within_a_token_has_the_whole_token(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = questions(1)
    rows = replace(whole, second=["the sleep is long"], references=[(Reference("leep is lon", 5),)])
    windows = features(rows, monkeypatch)
    assert windows.labels is not None
    assert [tuple(pair) for pair in windows.labels.tolist()] == run_qa_labels(rows, 40)
    assert (windows.labels[0] - windows.places[0]).tolist() == [1, 3]


def test_counts_in_words() -> None:
    assert counted(1500) == "1500 rows"
    assert counted(5749, separator=",") == "5,749 rows"
    assert counted(1430, 1200, ",") == "1,200 questions, 1,430 windows"
    assert counted(8, 8) == "8 questions"
