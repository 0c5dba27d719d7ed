"""Tokenization of questions and contexts into windows, with the tokens of the right answers as labels.

The labels are those of transformers' ``run_qa.py``: the first and the last token of the first right answer, or [CLS], token 0,
in a window that does not contain the whole answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data.encoding import EncodingError, RoomError
from q8trt.tasks.data.examples import Examples, Features
from q8trt.tasks.data.questions import Questions, Reference
from q8trt.tasks.data.windows import LONGEST_TEXT, WindowEncoder, Windows, WindowSizes
from q8trt.tasks.spans import SpanAnswer, SpanOptions, WindowLogits, find_answer


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionFeatures(Features):
    """The windows of questions over their contexts.

    Attributes:
        questions: the questions; some of them may have no windows here.
        rows: (N,) int64, the number of each window's question.
        places: (N,) int64, the index of the first context token among the ids of each window.
        offsets: N arrays (T, 2) int32, the first character of each context token and the one after its last.
    """

    questions: Examples
    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    offsets: list[npt.NDArray[np.int32]]

    @property
    def question_count(self) -> int:
        """The number of questions that have windows here."""
        return len(set(self.rows.tolist()))

    def select(self, indices: Sequence[int]) -> Self:
        """Return the windows at `indices`, in that order."""
        types, labels, chosen = self.token_type_ids, self.labels, list(indices)
        return replace(
            self,
            input_ids=[self.input_ids[index] for index in chosen],
            token_type_ids=None if types is None else [types[index] for index in chosen],
            labels=None if labels is None else labels[chosen],
            rows=self.rows[chosen],
            places=self.places[chosen],
            offsets=[self.offsets[index] for index in chosen],
        )

    def take(self, count: int | None) -> Self:
        """Return the first `count` windows; all of them for None."""
        return self.select(range(len(self))[:count])

    def answers(self, outputs: Sequence[npt.NDArray[np.float32]], options: SpanOptions) -> dict[int, SpanAnswer]:
        """Return number of a question -> its answer, for the questions that have windows here.

        `outputs` has an array (tokens, 2) of logits for each window.
        """
        contexts = self.questions.second or []
        return {
            number: find_answer(contexts[number], windows, options)
            for number, windows in group_windows(self.rows, self.places, self.offsets, outputs)
        }


def group_windows(
    rows: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    offsets: Sequence[npt.NDArray[np.int32]],
    outputs: Sequence[npt.NDArray[np.float32]],
) -> Iterator[tuple[int, list[WindowLogits]]]:
    """Yield the number of each text that has windows, in order, and its windows; for `outputs` see `QuestionFeatures.answers`."""
    groups: dict[int, list[WindowLogits]] = {}
    for row, place, characters, logits in zip(rows.tolist(), places.tolist(), offsets, outputs, strict=True):
        start, end = logits[place : place + len(characters)].T
        groups.setdefault(row, []).append(WindowLogits(start, end, float(logits[0].sum()), characters))
    yield from sorted(groups.items())


def question_windows(questions: Examples, tokenizer: Any, max_length: int) -> QuestionFeatures:
    """Return the windows of questions, with labels if the answers are known.

    Args:
        questions: pairs of a question and its context; `Questions` have answers.
        tokenizer: a transformers tokenizer; its ``model_input_names`` decide whether the windows have token types.
        max_length: maximum number of tokens of a window, special tokens included.

    Raises:
        ConfigError: `max_length` leaves no room for text, or exceeds the model's positions.
        DataError: a context is longer than `LONGEST_TEXT`, or the tokenizer fails.
    """
    if longer := next((text for text in questions.second or [] if len(text) > LONGEST_TEXT), None):
        raise DataError(
            f"{questions.source}: a context of {len(longer):,} characters; q8trt reads {LONGEST_TEXT:,} or fewer"
        )
    if max_length > tokenizer.model_max_length:
        raise ConfigError(f"max_seq_length {max_length} must be {tokenizer.model_max_length} or less for this model")
    try:
        encoder = WindowEncoder(tokenizer.backend_tokenizer, WindowSizes(max_length), is_pair=True)
        windows = encoder.encode(list(zip(questions.first, questions.second or [], strict=True)))
    except RoomError as error:
        raise ConfigError(f"max_seq_length {max_length} must be {error.shortest} or more for questions") from None
    except EncodingError as error:
        raise DataError(f"{questions.source}: the tokenizer cannot encode the texts: {error}") from None
    return QuestionFeatures(
        **questions.origin,
        input_ids=windows.input_ids,
        token_type_ids=windows.token_type_ids if "token_type_ids" in tokenizer.model_input_names else None,
        labels=answer_tokens(windows, questions.references) if isinstance(questions, Questions) else None,
        questions=questions,
        rows=windows.rows,
        places=windows.places,
        offsets=windows.offsets,
    )


def answer_tokens(windows: Windows, references: Sequence[Sequence[Reference]]) -> npt.NDArray[np.int64]:
    """Return labels (N, 2) int64: the index of the first and the last token of the first right answer in each window, or 0."""
    labels = np.zeros((len(windows), 2), np.int64)
    for number, (row, place, characters) in enumerate(
        zip(windows.rows.tolist(), windows.places.tolist(), windows.offsets, strict=True)
    ):
        if not references[row] or not len(characters):
            continue
        start, stop = references[row][0].start, references[row][0].start + len(references[row][0].text)
        if characters[0, 0] <= start and stop <= characters[-1, 1]:
            first = int(np.searchsorted(characters[:, 0], start, side="right")) - 1
            last = int(np.searchsorted(characters[:, 1], stop, side="left"))
            labels[number] = place + first, place + last
    return labels
