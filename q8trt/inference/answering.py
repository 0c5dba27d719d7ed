"""Windows of token ids of questions and contexts, and answers from their logits, for `Engine.answer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import repeat
from typing import Any

import numpy as np

from q8trt.errors import ConfigError, InputError, nearest
from q8trt.inference.batching import Row
from q8trt.inference.text import TextEncoder
from q8trt.tasks.data.question_windows import group_windows
from q8trt.tasks.data.windows import LONGEST_TEXT, WindowEncoder, Windows, WindowSizes
from q8trt.tasks.scoring import split_rows
from q8trt.tasks.spans import SpanAnswer, SpanOptions, find_answer

#: A question and its context.
Pair = tuple[str, ...]


def question_pairs(question: str | Sequence[str], context: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of a question and its context from two texts, two lists, or a list of questions and one context.

    Raises:
        InputError: the arguments are neither texts nor lists of one length.
    """
    if isinstance(question, str) and isinstance(context, str):
        return [(question, context)]
    if not isinstance(question, list | tuple) or not isinstance(context, str | list | tuple):
        raise InputError(
            "expected a question and its context, or lists of them; several questions may share one context"
        )
    contexts = [context] * len(question) if isinstance(context, str) else context
    if len(contexts) != len(question):
        raise InputError(
            f"{len(question)} questions and {len(contexts)} contexts; give one context, or one for each question"
        )
    return list(zip(question, contexts, strict=True))


class WindowedPairs:
    """An encoder of questions and contexts to windows. It is safe to use from many threads.

    Args:
        text: the engine's encoder, whose tokenizer is used.

    Attributes:
        question_length: maximum tokens of a question.
    """

    def __init__(self, text: TextEncoder) -> None:
        self._text = text
        self._encoder = WindowEncoder(text.tokenizer, WindowSizes(text.max_length), is_pair=True)
        self.question_length = self._encoder.question_length

    def check(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Return the pairs. Raises the errors of `TextEncoder.check`, and InputError if a context exceeds `LONGEST_TEXT`."""
        checked = self._text.check_all(pairs)
        for index, (_, context) in enumerate(checked):
            if len(context) > LONGEST_TEXT:
                raise InputError(
                    f"item {index}: a context of {len(context):,} characters; give {LONGEST_TEXT:,} or fewer", index
                )
        return checked

    def encode(self, pairs: Sequence[Pair]) -> Windows:
        """Return the windows of checked pairs. Raises EngineError if the tokenizer fails."""
        return self._text.windows(self._encoder, pairs)


def token_rows(windows: Windows) -> list[Row]:
    """Return the token ids and the token types, or None, of each window."""
    return list(zip(windows.input_ids, windows.token_type_ids or repeat(None, len(windows)), strict=True))


def span_options(options: Mapping[str, Any]) -> SpanOptions:
    """Return the options of answers. Raises ConfigError if an option is unknown or out of range."""
    names = [each.name for each in fields(SpanOptions)]
    if unknown := next((name for name in options if name not in names), None):
        raise ConfigError(f"unknown option {unknown!r}{nearest(unknown, names)}; expected one of {', '.join(names)}")
    return SpanOptions(**options)


def answers_of(pairs: Sequence[Pair], windows: Windows, logits: np.ndarray, options: SpanOptions) -> list[SpanAnswer]:
    """Return the answer to each pair. `logits` are float32 (tokens, 2) for the tokens of all windows, in order."""
    outputs = split_rows(logits, windows.lengths)
    groups = group_windows(windows.rows, windows.places, windows.offsets, outputs)
    return [find_answer(pairs[number][1], parts, options) for number, parts in groups]
