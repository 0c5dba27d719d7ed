"""Encoding of texts to token ids, truncated as transformers' ``longest_first`` does, with bounded time and memory.

Training, `q8trt.Engine` and Triton's model encode with this module, so all of them read the same tokens. A Triton repository
contains a copy of this file, which therefore imports nothing from q8trt.

`tokenizers` can truncate too, but it encodes the whole text first, at 430 bytes a token, and for two long texts it forms all
pairs of their overflows (huggingface/tokenizers, issue 2035). Here each text is encoded alone, and only a part of it:

- A part ends at a single space between two ASCII letters or digits. A tokenizer that `splits_at_spaces` splits there too, and
  none of its rules reads past such a place, so the tokens of the part are exactly the first tokens of the text.
- Without such a place, the part grows, up to `BLUNT` characters. After that the text is cut there, so only a "word" longer
  than `BLUNT` can have other tokens than in the whole text.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

#: Characters that are encoded first, for each token that is kept. English has 4 to 5 characters a token.
PER_TOKEN = 16
#: Characters after which a text is cut even if it has no safe place.
BLUNT = 2**17
#: Maximum number of characters that are read of a text. This limit matters only for texts with few tokens, such as blanks.
MOST = 2**20
#: Characters up to which the texts of a pair are compared by their number of tokens; longer ones by their characters.
COUNTED = 2**17
#: Approximate number of characters for one call of `tokenizers`, whose memory grows with it.
_GROUP = 2**18

_PLAIN = frozenset(string.ascii_letters + string.digits)
_PROBES = ("a", "1", "the", "!", "\u3042")
_NORMALIZERS = {
    "BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Precompiled", "Strip",
    "Prepend", "Replace",
}  # fmt: skip
_SPLIT_AT_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_REPLACE_SPACES = {"ByteLevel": "use_regex", "Metaspace": "split"}
_PRE_TOKENIZERS = {*_SPLIT_AT_SPACES, *_REPLACE_SPACES, "Punctuation", "Digits"}


class EncodingError(ValueError):
    """Error of a tokenizer that cannot encode. ``str(error)`` is one line."""


class RoomError(EncodingError):
    """Error of a `max_length` that leaves no room for text; `shortest` is the smallest that does."""

    def __init__(self, max_length: int, shortest: int) -> None:
        super().__init__(f"{max_length} tokens leave no room for text: {shortest} or more are needed")
        self.shortest = shortest


@dataclass(frozen=True)
class Encoded:
    """Token ids of N examples, special tokens included.

    Attributes:
        ids: N lists of token ids.
        type_ids: N lists of token types, with the lengths of `ids`.
        truncated: the number of truncated examples.
    """

    ids: list[list[int]]
    type_ids: list[list[int]]
    truncated: int


@dataclass(frozen=True)
class Slot:
    """A place in an example, with its token type: the text number `text`, or the special token `token` if `text` is None."""

    text: int | None
    token: int
    type_id: int


@dataclass(frozen=True)
class _Head:
    """Tokens of the end of a text that truncation keeps, and whether they are all tokens of the text."""

    ids: list[int]
    whole: bool


class Encoder:
    """A `tokenizers.Tokenizer` that truncates examples to `max_length` tokens. It is thread-safe.

    Args:
        tokenizer: the tokenizer; its truncation and padding are switched off.
        max_length: maximum number of tokens of an example, special tokens included.
        is_pair: an example is two texts, else one.
        side: the side on which a text is truncated, "right" or "left".

    Raises:
        EncodingError: the tokenizer fails, or `side` is unknown.
        RoomError: `max_length` leaves no room for text.
    """

    def __init__(self, tokenizer: Any, max_length: int, is_pair: bool, side: str = "right") -> None:
        if side not in ("right", "left"):
            raise EncodingError(f"truncation_side is {side!r}, expected 'right' or 'left'")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.max_length, self.is_pair = max_length, is_pair
        self._tokenizer, self._left = tokenizer, side == "left"
        self._layout = layout(tokenizer, is_pair)
        special = sum(slot.text is None for slot in self._layout)
        self._budget = max_length - special
        if self._budget < 1 + is_pair:
            raise RoomError(max_length, special + 1 + is_pair)
        self._splits = splits_at_spaces(tokenizer, self._left)

    def encode(self, rows: Sequence[Sequence[str]]) -> Encoded:
        """Encode rows of one text, or two texts for pairs. Raises EncodingError if the tokenizer fails."""
        heads = self._heads([text for row in rows for text in row])
        encoded = Encoded([], [], 0)
        truncated = 0
        for row in rows:
            parts = [next(heads) for _ in row]
            counts = self._counts(row, parts)
            texts = [self._cut(part.ids, count) for part, count in zip(parts, counts, strict=True)]
            truncated += any(
                not part.whole or len(part.ids) > len(text) for part, text in zip(parts, texts, strict=True)
            )
            ids: list[int] = []
            types: list[int] = []
            for slot in self._layout:
                added = [slot.token] if slot.text is None else texts[slot.text]
                ids += added
                types += [slot.type_id] * len(added)
            encoded.ids.append(ids)
            encoded.type_ids.append(types)
        return Encoded(encoded.ids, encoded.type_ids, truncated)

    def _cut(self, ids: list[int], count: int) -> list[int]:
        return ids[max(0, len(ids) - count) :] if self._left else ids[:count]

    def _counts(self, row: Sequence[str], parts: Sequence[_Head]) -> list[int]:
        """Return the number of tokens that each text keeps by the rules of ``longest_first`` in `tokenizers`."""
        counts, budget = [len(part.ids) for part in parts], self._budget
        if len(counts) == 1 or sum(counts) <= budget:
            return counts if sum(counts) <= budget else [budget]
        first, second = counts
        half, odd = divmod(budget, 2)
        if min(first, second) <= half:
            return [first, budget - first] if first <= second else [budget - second, second]
        if odd and self._first_is_longer(row, parts):
            return [half + odd, half]
        return [half, half + odd]

    def _first_is_longer(self, row: Sequence[str], parts: Sequence[_Head]) -> bool:
        """Return whether the first text has more tokens than the second; characters if a text is longer than `COUNTED`."""
        if max(map(len, row)) > COUNTED:
            return len(row[0]) > len(row[1])
        first, second = (
            len(part.ids) if part.whole else len(self._ids([text])[0]) for text, part in zip(row, parts, strict=True)
        )
        return first > second

    def _heads(self, texts: Sequence[str]) -> Iterator[_Head]:
        """Yield the head of each text: all of its tokens, or at least those that truncation keeps."""
        size = PER_TOKEN * self._budget
        start = 0
        while start < len(texts):
            parts: list[str] = []
            characters = 0
            for text in texts[start:]:
                if parts and characters + min(len(text), size) > _GROUP:
                    break
                parts.append(self._part(text, size))
                characters += len(parts[-1])
            for text, part, ids in zip(texts[start : start + len(parts)], parts, self._ids(parts), strict=True):
                yield self._head(text, part, ids)
            start += len(parts)

    def _head(self, text: str, part: str, ids: list[int]) -> _Head:
        """Return the head of `text`; `ids` are the tokens of its `part`, which is doubled while it has too few."""
        while len(part) < len(text) and len(ids) < 2 * self._budget and len(part) < MOST:
            part = self._part(text, min(2 * len(part), MOST))
            ids = self._ids([part])[0]
        return _Head(ids, len(part) == len(text))

    def _part(self, text: str, size: int) -> str:
        """Return the kept end of `text`, up to `size` characters; more if only a later place is safe."""
        while size < len(text):
            place = self._safe_place(text, size)
            if place is None and size < BLUNT:
                size = min(2 * size, BLUNT)
                continue
            if self._left:
                return text[-size if place is None else place :]
            return text[: size if place is None else place]
        return text

    def _safe_place(self, text: str, size: int) -> int | None:
        """Return the index of a space at which the tokenizer splits, at most `size` characters from the kept end, or None."""
        if not self._splits:
            return None
        # A part is longer than half of `size`, so that doubling makes it grow.
        low, high = (len(text) - size, len(text) - size // 2) if self._left else (size // 2 + 1, size)
        place = text.find(" ", low, high) if self._left else text.rfind(" ", low, high)
        while place > 0:
            if text[place - 1] in _PLAIN and text[place + 1 : place + 2] in _PLAIN:
                return place
            place = text.find(" ", place + 1, high) if self._left else text.rfind(" ", low, place)
        return None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encodings = guarded(self._tokenizer.encode_batch_fast, texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def guarded(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of `tokenizers`. Raises EncodingError for any exception, including a panic of its Rust code."""
    try:
        return function(*arguments, **options)
    except Exception as error:
        raise EncodingError(" ".join(str(error).split()) or type(error).__name__) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which derives from BaseException and has no public name
            raise
        raise EncodingError(" ".join(str(error).split())) from None


def layout(tokenizer: Any, is_pair: bool) -> tuple[Slot, ...]:
    """Return the order of special tokens and texts in an example, found by encoding a short one.

    Raises:
        EncodingError: the tokenizer fails, makes no tokens, or its post-processor does more than add special tokens.
    """
    for probe in _PROBES:
        texts = (probe,) * (1 + is_pair)
        alone = guarded(tokenizer.encode, probe, add_special_tokens=False).ids
        if not alone:
            continue
        whole = guarded(tokenizer.encode, *texts)
        slots: list[Slot] = []
        index = 0
        rows = list(zip(whole.ids, whole.type_ids, whole.sequence_ids, strict=True))
        while index < len(rows):
            token, type_id, text = rows[index]
            slots.append(Slot(text, token, type_id))
            size = 1 if text is None else len(alone)
            if text is not None and rows[index : index + size] != [(each, type_id, text) for each in alone]:
                break
            index += size
        if index == len(rows) and sorted(slot.text for slot in slots if slot.text is not None) == list(
            range(1 + is_pair)
        ):
            return tuple(slots)
        raise EncodingError("its post-processor does more than add special tokens")
    raise EncodingError("it makes no tokens of text")


def splits_at_spaces(tokenizer: Any, left: bool = False) -> bool:
    """Return whether a tokenizer is known to split at a space between letters, with no rule that reads past it.

    With `left`, this also holds for a text that begins with such a space.
    """
    try:
        normalizers = _members(tokenizer.normalizer, "normalizers")
        pre_tokenizers = _members(tokenizer.pre_tokenizer, "pretokenizers")
    except Exception:  # a component written in Python has no JSON
        return False
    if any(_has_space(token.content) for token in tokenizer.get_added_tokens_decoder().values()):
        return False
    if not all(_is_local(each, left) for each in normalizers):
        return False
    if not all(each["type"] in _PRE_TOKENIZERS for each in pre_tokenizers):
        return False
    for each in pre_tokenizers:
        if each["type"] in _SPLIT_AT_SPACES:
            return True
        if each["type"] in _REPLACE_SPACES:
            return each.get(_REPLACE_SPACES[each["type"]], True) is True
    return False


def _members(component: Any, key: str) -> list[dict[str, Any]]:
    """Return the state of a normalizer or pre-tokenizer as a list; a sequence is flattened."""
    if component is None:
        return []
    waiting, members = [json.loads(component.__getstate__())], []
    while waiting:
        state = waiting.pop(0)
        if state["type"] == "Sequence":
            waiting = [*state[key], *waiting]
        else:
            members.append(state)
    return members


def _is_local(normalizer: dict[str, Any], left: bool) -> bool:
    """Return whether a normalizer's result on one side of a space does not depend on the text on the other side."""
    kind = normalizer["type"]
    if kind not in _NORMALIZERS or (left and kind in ("Strip", "Prepend")):
        return False
    if kind != "Replace":
        return True
    pattern = normalizer["pattern"]
    return pattern == {"Regex": " {2,}"} or not _has_space(pattern.get("String", " "))


def _has_space(text: str) -> bool:
    return any(character.isspace() for character in text)
