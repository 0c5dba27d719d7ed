"""Overlapping windows of tokens of texts of any length, with the characters of each token.

A window has the question, if there is one, and as many tokens of the text as fit the model. The next window begins `stride`
tokens before the end of the last one. For the usual sizes these are the windows of transformers' ``truncation="only_second"``
with ``return_overflowing_tokens``, but this module needs only `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from q8trt.tasks.data.encoding import Encoder, RoomError, guarded, layout
from q8trt.tasks.data.examples import TokenRows

#: Maximum number of characters of a text that is split into windows. Callers refuse longer texts, so none is cut silently.
LONGEST_TEXT = 2**20
#: Approximate number of characters for one call of `tokenizers`, which needs 430 bytes a token.
_GROUP = 2**18


@dataclass(frozen=True, eq=False)
class Windows(TokenRows):
    """Token ids of the N windows of some texts, in the order of the texts.

    Attributes:
        rows: (N,) int64, the number of each window's text, ascending; each text has a window.
        places: (N,) int64, the index of the first token of the text among the ids of each window.
        first: (N,) int64, the number of that token among all tokens of the text.
        offsets: N arrays (T, 2) int32, the first character of each token of the text in the window and the one after its last.
        truncated: the number of truncated questions.
    """

    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    offsets: list[npt.NDArray[np.int32]]
    truncated: int = 0
    labels: None = None


@dataclass(frozen=True)
class WindowSizes:
    """The sizes of windows, in tokens.

    Attributes:
        max_length: maximum number of tokens of a window, question and special tokens included.
        stride: tokens that two windows share; at most half of the text's tokens in a window are shared.
        question: maximum number of tokens of a question, which is truncated; at most half of the window.
    """

    max_length: int = 384
    stride: int = 128
    question: int = 64


class WindowEncoder:
    """A `tokenizers.Tokenizer` that splits texts into windows. It is thread-safe.

    Args:
        tokenizer: the tokenizer; its truncation and padding are switched off.
        sizes: the sizes of windows.
        is_pair: each text has a question before it.

    Raises:
        EncodingError: the tokenizer fails.
        RoomError: `sizes` leave no room for text.
    """

    def __init__(self, tokenizer: Any, sizes: WindowSizes, is_pair: bool) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.sizes, self.is_pair = sizes, is_pair
        self._tokenizer = tokenizer
        self._layout = layout(tokenizer, is_pair)
        special = sum(slot.text is None for slot in self._layout)
        self._budget = sizes.max_length - special
        if self._budget < 1 + is_pair:
            raise RoomError(sizes.max_length, special + 1 + is_pair)
        if is_pair:
            single = [slot.text is None for slot in layout(tokenizer, False)]
            self._question = slice(single.index(False), single.index(False) + 1 - len(single) or None)
            self._questions = Encoder(tokenizer, self.question_length + len(single) - 1, is_pair=False)

    @property
    def question_length(self) -> int:
        """The maximum number of tokens of a question."""
        return min(self.sizes.question, self._budget // 2)

    def encode(self, rows: Sequence[Sequence[str]]) -> Windows:
        """Return the windows of rows of a text, or a question and a text. Raises EncodingError if the tokenizer fails."""
        ids: list[list[int]] = []
        types: list[list[int]] = []
        places: list[tuple[int, int, int]] = []
        offsets = []
        questions, truncated = self._question_ids([row[0] for row in rows]) if self.is_pair else ([[]] * len(rows), 0)
        texts = self._texts([row[-1] for row in rows])
        for number, (question, (tokens, characters)) in enumerate(zip(questions, texts, strict=True)):
            for start, stop in self._ranges(len(tokens), self._budget - len(question)):
                window, window_types, place = self._window(question, tokens[start:stop])
                ids.append(window)
                types.append(window_types)
                places.append((number, place, start))
                offsets.append(characters[start:stop])
        numbers, indices, first = np.array(places, np.int64).reshape(-1, 3).T
        return Windows(ids, types, numbers, indices, first, offsets, truncated)

    def _window(self, question: list[int], text: list[int]) -> tuple[list[int], list[int], int]:
        """Return the ids and types of one window, and the index of the first token of the text in it."""
        parts = [question, text] if self.is_pair else [text]
        ids: list[int] = []
        types: list[int] = []
        place = 0
        for slot in self._layout:
            if slot.text == len(parts) - 1:
                place = len(ids)
            added = [slot.token] if slot.text is None else parts[slot.text]
            ids += added
            types += [slot.type_id] * len(added)
        return ids, types, place

    def _ranges(self, count: int, room: int) -> Iterator[tuple[int, int]]:
        """Yield the first token of each window and the one after its last; a text without tokens has one empty window."""
        step = room - min(self.sizes.stride, room // 2)
        for start in range(0, max(count, 1), step):
            stop = min(start + room, count)
            yield start, stop
            if stop == count:
                return

    def _question_ids(self, questions: list[str]) -> tuple[list[list[int]], int]:
        """Return the tokens of each question without special tokens, and the number of truncated questions."""
        encoded = self._questions.encode([(text,) for text in questions])
        return [ids[self._question] for ids in encoded.ids], encoded.truncated

    def _texts(self, texts: list[str]) -> Iterator[tuple[list[int], npt.NDArray[np.int32]]]:
        """Yield the token ids of each text and the characters of each token. Repeated texts of a group are encoded once."""
        start = 0
        while start < len(texts):
            stop, characters = start, 0
            while stop < len(texts) and (stop == start or characters + len(texts[stop]) <= _GROUP):
                characters += 0 if stop > start and texts[stop] == texts[stop - 1] else len(texts[stop])
                stop += 1
            unique = list(dict.fromkeys(texts[start:stop]))
            encodings = guarded(self._tokenizer.encode_batch, unique, add_special_tokens=False)
            encoded = {
                text: (each.ids, np.array(each.offsets, np.int32).reshape(-1, 2))
                for text, each in zip(unique, encodings, strict=True)
            }
            yield from (encoded[text] for text in texts[start:stop])
            start = stop
