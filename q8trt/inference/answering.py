"""Questions and contexts -> windows of token ids, and their logits -> answers, for `Engine.answer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from q8trt.engine.manifest import Manifest
from q8trt.errors import InputError
from q8trt.inference.text import TextEncoder
from q8trt.tasks.data.encoding import EncodingError
from q8trt.tasks.data.question_windows import group_windows
from q8trt.tasks.data.windows import LONGEST_TEXT, WindowEncoder, Windows, WindowSizes
from q8trt.tasks.spans import SpanAnswer, SpanOptions, find_answer

#: A question and its context.
Pair = tuple[str, ...]


def question_pairs(question: str | Sequence[str], context: str | Sequence[str]) -> tuple[list[tuple[str, str]], bool]:
    """Return (question, context) pairs, and whether the caller asked one question.

    Raises:
        InputError: lists of different lengths, or one question about several contexts.
    """
    if isinstance(question, str):
        if not isinstance(context, str):
            raise InputError(f"one question and {len(context)} contexts; give a list of as many questions")
        return [(question, context)], True
    contexts = [context] * len(question) if isinstance(context, str) else list(context)
    if len(contexts) != len(question):
        raise InputError(
            f"{len(question)} questions and {len(contexts)} contexts; give one context, or one to each question"
        )
    return list(zip(question, contexts, strict=True)), False


class WindowedPairs:
    """The windows that a model for question answering reads. Many threads may use one.

    Args:
        text: the encoder of the engine, whose tokenizer is used.
        manifest: the engine's.

    Raises:
        EngineError: the tokenizer cannot encode pairs.
    """

    def __init__(self, text: TextEncoder, manifest: Manifest) -> None:
        self._text, self._inputs = text, manifest.inputs
        self._encoder = WindowEncoder(text.tokenizer, WindowSizes(text.max_length), is_pair=True)

    def encode(self, pairs: Sequence[Pair]) -> Windows:
        """Return the windows of pairs that `TextEncoder.check` passed.

        Raises:
            InputError: a context is longer than `LONGEST_TEXT`.
            EngineError: the tokenizer fails.
        """
        for index, (_, context) in enumerate(pairs):
            if len(context) > LONGEST_TEXT:
                raise InputError(
                    f"item {index}: a context of {len(context):,} characters; give {LONGEST_TEXT:,} or fewer", index
                )
        try:
            windows = self._encoder.encode(pairs)
        except EncodingError as error:
            raise self._text.failure(error) from None
        return windows if "token_type_ids" in self._inputs else replace(windows, token_type_ids=None)


def answers_of(
    pairs: Sequence[Pair], windows: Windows, outputs: Sequence[np.ndarray], options: SpanOptions
) -> list[SpanAnswer]:
    """Return the answer to each pair; `outputs` has the logits (tokens, 2) of each window."""
    groups = group_windows(windows.rows, windows.places, windows.offsets, outputs)
    return [find_answer(pairs[number][1], parts, options) for number, parts in groups]
