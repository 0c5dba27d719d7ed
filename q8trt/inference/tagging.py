"""Tagged spans of a text from the logits of its tokens, aggregated as in transformers' pipeline "token-classification".

A long text is split into overlapping windows. The logits of a token come from the window in which it is farthest from an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from q8trt.engine.manifest import Manifest
from q8trt.errors import ConfigError, InputError
from q8trt.inference.text import TextEncoder
from q8trt.tasks.data.windows import LONGEST_TEXT, WindowEncoder, Windows, WindowSizes
from q8trt.tasks.scoring import split_rows
from q8trt.tasks.tags import OUTSIDE, has_entities, parse_tag

Scores = npt.NDArray[np.float64]
#: Rules for the tag of a word of several tokens. "simple" treats each token by itself.
AGGREGATIONS = ("simple", "first", "average", "max")


@dataclass(frozen=True)
class Span:
    """A tagged part of a text.

    Attributes:
        label: the tag, without the prefix of a scheme such as B- and I-.
        start: index of the first character.
        end: index after the last character.
        text: the characters.
        score: mean probability of the tags of its words, from 0 to 1.
    """

    label: str
    start: int
    end: int
    text: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready data, with seven significant digits of the score."""
        return {**asdict(self), "score": float(f"{self.score:.7g}")}


@dataclass(frozen=True)
class _Word:
    """A word or a token: its characters, and the probability of each tag, (tags,)."""

    start: int
    end: int
    scores: Scores


class Tagger:
    """An encoder of texts to windows, and a decoder of their logits to spans. It is safe to use from many threads.

    Args:
        text: the engine's encoder, whose tokenizer is used.
        manifest: the engine's manifest.
    """

    def __init__(self, text: TextEncoder, manifest: Manifest) -> None:
        self.labels = manifest.head.labels
        self._text, self._tokenizer = text, text.tokenizer
        self._encoder = WindowEncoder(text.tokenizer, WindowSizes(text.max_length), is_pair=False)
        tokenizer = text.tokenizer
        self._prefix = getattr(tokenizer.model, "continuing_subword_prefix", None)
        self._unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
        #: With parts of speech, each word is a separate span, even beside a word with the same tag.
        self._each_word = OUTSIDE not in self.labels and not has_entities(self.labels)

    def check(self, texts: Sequence[str]) -> None:
        """Raise InputError if a text has more than `LONGEST_TEXT` characters."""
        for index, text in enumerate(texts):
            if len(text) > LONGEST_TEXT:
                raise InputError(
                    f"item {index}: {len(text):,} characters, expected {LONGEST_TEXT:,} at most; cut it into paragraphs",
                    index,
                )

    def windows(self, texts: Sequence[str]) -> Windows:
        """Return the windows of checked texts. Raises EngineError if the tokenizer fails."""
        return self._text.windows(self._encoder, [(text,) for text in texts])

    def spans(
        self, texts: Sequence[str], windows: Windows, logits: np.ndarray, aggregation: str = "first"
    ) -> list[list[Span]]:
        """Return the spans of each text, in order.

        Args:
            texts: the texts.
            windows: the windows of `texts`.
            logits: float32 (tokens, tags), of the tokens of all windows in order, including special tokens.
            aggregation: one of `AGGREGATIONS`.
        """
        tokens = _joined(windows, split_rows(logits, windows.lengths), len(texts))
        return [self._text_spans(text, *each, aggregation) for text, each in zip(texts, tokens, strict=True)]

    def _text_spans(
        self, text: str, ids: npt.NDArray[np.int64], offsets: np.ndarray, logits: np.ndarray, aggregation: str
    ) -> list[Span]:
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
        scores = powers / powers.sum(axis=1, keepdims=True)
        words: list[_Word] = []
        group: list[int] = []
        for token in range(len(ids)):
            if group and (aggregation == "simple" or not self._continues(text, int(ids[token]), offsets[token])):
                words.append(_word(group, offsets, scores, aggregation))
                group = []
            group.append(token)
        if group:
            words.append(_word(group, offsets, scores, aggregation))
        return self._merged(text, words)

    def _continues(self, text: str, token_id: int, offset: np.ndarray) -> bool:
        """Return whether a token continues the previous word, by the rule of transformers' pipeline."""
        start, end = offset.tolist()
        if self._prefix:
            token = self._tokenizer.id_to_token(token_id) or ""
            return token_id != self._unknown and len(token) != end - start
        return start > 0 and not any(character.isspace() for character in text[start - 1 : start + 1])

    def _merged(self, text: str, words: Iterable[_Word]) -> list[Span]:
        """Return the spans of words. Neighbors in one entity form one span. Blanks and words outside entities are left out."""
        spans: list[tuple[str, list[_Word]]] = []
        for word in words:
            begins, name = parse_tag(self.labels[int(word.scores.argmax())])
            if spans and not begins and not self._each_word and spans[-1][0] == name:
                spans[-1][1].append(word)
            else:
                spans.append((name, [word]))
        named = (_span(text, name, group) for name, group in spans if name != OUTSIDE)
        return [span for span in named if span.text]  # byte-level BPE has tokens that are only blanks


def check_aggregation(aggregation: str) -> None:
    """Raise ConfigError if `aggregation` is not one of `AGGREGATIONS`."""
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"aggregation {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}")


def _word(tokens: Sequence[int], offsets: np.ndarray, scores: Scores, aggregation: str) -> _Word:
    """Return the word of some tokens, see transformers' `TokenClassificationPipeline.aggregate_word`."""
    return _Word(int(offsets[tokens[0]][0]), int(offsets[tokens[-1]][1]), _CHOICES[aggregation](scores[list(tokens)]))


_CHOICES: dict[str, Callable[[Scores], Scores]] = {
    "simple": lambda scores: scores[0],
    "first": lambda scores: scores[0],
    "average": lambda scores: np.asarray(scores.mean(axis=0)),
    "max": lambda scores: scores[int(scores.max(axis=1).argmax())],
}


def _span(text: str, name: str, words: Sequence[_Word]) -> Span:
    start, end = words[0].start, words[-1].end
    start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokens begin with the space before the word
    score = float(np.mean([word.scores.max() for word in words]))
    return Span(name, start, end, text[start:end], score)


def _joined(
    windows: Windows, logits: Sequence[np.ndarray], texts: int
) -> list[tuple[npt.NDArray[np.int64], np.ndarray, np.ndarray]]:
    """Return the tokens of each text: ids (T,), characters (T, 2) and logits (T, tags) from the window with the most context."""
    counts = np.array([len(each) for each in windows.offsets], np.int64)
    totals = np.zeros(texts, np.int64)
    np.maximum.at(totals, windows.rows, windows.first + counts)
    width = logits[0].shape[-1] if len(logits) else 0
    joined = [
        (np.empty(total, np.int64), np.empty((total, 2), np.int64), np.empty((total, width), np.float32))
        for total in totals.tolist()
    ]
    context = [np.full(total, -1, np.int64) for total in totals.tolist()]
    for number, row in enumerate(windows.rows.tolist()):
        first, place, count = int(windows.first[number]), int(windows.places[number]), int(counts[number])
        room = np.minimum(np.arange(count), np.arange(count)[::-1])
        better = room > context[row][first : first + count]
        chosen = np.flatnonzero(better)
        at = first + chosen
        context[row][at] = room[chosen]
        ids, offsets, values = joined[row]
        ids[at] = np.asarray(windows.input_ids[number], np.int64)[place + chosen]
        offsets[at] = windows.offsets[number][chosen]
        values[at] = logits[number][place + chosen]
    return joined
