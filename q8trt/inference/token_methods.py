"""The methods of `Engine` for heads for tokens: question answering and tagging."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from q8trt.inference.answering import Pair, WindowedPairs, answers_of, question_pairs, span_options, token_rows
from q8trt.inference.batching import BatchedModel
from q8trt.inference.microbatch import MicroBatcher
from q8trt.inference.tagging import Span, Tagger, check_aggregation
from q8trt.inference.text import Item
from q8trt.tasks.data.windows import Windows
from q8trt.tasks.spans import SpanAnswer, SpanOptions

#: Texts that are encoded and run at a time. Each may have a thousand windows.
_TEXTS = 256
_TOKEN = "the logits of token"


class TokenMethods(ABC):
    """The methods of `Engine` that read long texts in windows."""

    _model: BatchedModel
    _batcher: MicroBatcher
    _questions: WindowedPairs | None
    _tagger: Tagger | None

    @overload
    def answer(self, question: str, context: str, **options: Any) -> SpanAnswer: ...
    @overload
    def answer(self, question: Sequence[str], context: str | Sequence[str], **options: Any) -> list[SpanAnswer]: ...
    def answer(self, question: Any, context: Any, **options: Any) -> Any:
        """Return the answers to questions. Each answer is a part of its context. A long context is read in overlapping windows.

        Args:
            question: a question, or a list of questions. Tokens beyond the 64th are cut off.
            context: the text with the answer, or a list with one text for each question. Several questions can share one text.
            options: fields of `SpanOptions`. `null_score_diff_threshold=0.0` lets a model report that there is no answer
                (SQuAD 2.0). The others are `max_answer_length` and `n_best_size`.

        Returns:
            one answer for one question, a list of answers for a list.

        Raises:
            ConfigError: the engine's head is not for questions, or an option is unknown or out of range.
            InputError: an item is empty, too long or not a text (`index` is its position), or lists differ in length.
            ClosedError: the engine is closed.
            BackendError: the backend refused a batch, or a logit is not finite.
        """
        pairs, chosen = self._question_pairs(question, context, options)
        replies: list[SpanAnswer] = []
        for start in range(0, len(pairs), _TEXTS):
            part = pairs[start : start + _TEXTS]
            windows = self._windows(part)
            replies += answers_of(part, windows, self._finite(self._model.logits(windows), _TOKEN), chosen)
        return replies[0] if isinstance(question, str) else replies

    @overload
    async def aanswer(self, question: str, context: str, **options: Any) -> SpanAnswer: ...
    @overload
    async def aanswer(
        self, question: Sequence[str], context: str | Sequence[str], **options: Any
    ) -> list[SpanAnswer]: ...
    async def aanswer(self, question: Any, context: Any, **options: Any) -> Any:
        """Answer like `answer` in an event loop, with dynamic micro-batching of windows."""
        pairs, chosen = self._question_pairs(question, context, options)
        if not pairs:
            return []
        windows = await asyncio.to_thread(self._windows, pairs)
        outputs = await asyncio.wrap_future(self._batcher.submit(token_rows(windows)))
        replies = await asyncio.to_thread(
            answers_of, pairs, windows, self._finite(np.concatenate(outputs), _TOKEN), chosen
        )
        return replies[0] if isinstance(question, str) else replies

    def tag(self, texts: Iterable[str], aggregation: str = "first") -> list[list[Span]]:
        """Return the tagged spans of each text: entities, or words with their part of speech, in order.

        A long text is read in overlapping windows. The answer for a token comes from the window with the most context around it.

        Args:
            texts: any number of texts.
            aggregation: rule for words of several tokens. "first" uses the tag of the first token, as in training; "average"
                and "max" combine the probabilities of all tokens; "simple" treats each token by itself. transformers' pipeline
                "token-classification" has the same names.

        Raises:
            ConfigError: the engine does not tag, or the aggregation is unknown.
            InputError: an item is not a text, is empty, or has more than a million characters; `index` is its position.
            ClosedError: the engine is closed.
            BackendError: the backend refused a batch, or a logit is not finite.
        """
        tagger = self._tagger_of(aggregation)
        rows = [text for (text,) in self._checked(texts)]
        tagger.check(rows)
        spans: list[list[Span]] = []
        for start in range(0, len(rows), _TEXTS):
            group = rows[start : start + _TEXTS]
            windows = tagger.windows(group)
            spans += tagger.spans(group, windows, self._finite(self._model.logits(windows), _TOKEN), aggregation)
        return spans

    async def atag(self, texts: Any, aggregation: str = "first") -> Any:
        """Tag like `tag` in an event loop, with dynamic micro-batching. One text returns one list of spans."""
        tagger, single = self._tagger_of(aggregation), isinstance(texts, str)
        rows = [text for (text,) in self._checked([texts] if single else texts)]
        tagger.check(rows)
        if not rows:
            return []
        windows = await asyncio.to_thread(tagger.windows, rows)
        outputs = await asyncio.wrap_future(self._batcher.submit(token_rows(windows)))
        logits = self._finite(np.concatenate(outputs), _TOKEN)
        spans = await asyncio.to_thread(tagger.spans, rows, windows, logits, aggregation)
        return spans[0] if single else spans

    def _tagger_of(self, aggregation: str) -> Tagger:
        self._check_head("tag")
        check_aggregation(aggregation)
        assert self._tagger is not None
        return self._tagger

    def _question_pairs(self, question: Any, context: Any, options: dict[str, Any]) -> tuple[list[Pair], SpanOptions]:
        """Return the checked pairs of a question and its context, and the options."""
        self._check_head("answer")
        self._check_open()
        assert self._questions is not None
        return self._questions.check(question_pairs(question, context)), span_options(options)

    def _windows(self, pairs: Sequence[Pair]) -> Windows:
        assert self._questions is not None
        windows = self._questions.encode(pairs)
        self._count(windows.truncated)
        return windows

    @abstractmethod
    def _check_head(self, method: str) -> None:
        """Raise ConfigError if the method of the model's head is not `method`."""

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ClosedError if the engine is closed."""

    @abstractmethod
    def _checked(self, items: Iterable[Item]) -> list[tuple[str, ...]]:
        """Return the texts of each item. Raises InputError if an item is not a text."""

    @abstractmethod
    def _count(self, truncated: int) -> None:
        """Add to the number of items that were cut."""

    @abstractmethod
    def _finite(self, vectors: np.ndarray, name: str = "") -> np.ndarray:
        """Return `vectors` (N, D). Raises BackendError if one is not finite; the message names it by `name` and its number."""
