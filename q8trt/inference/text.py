"""Checks of texts, and their encoding to token ids, cut as in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8trt.engine.manifest import Manifest
from q8trt.errors import ConfigError, EngineError, InputError, PairError
from q8trt.files import MalformedError
from q8trt.tasks.data import TokenRows
from q8trt.tasks.data.encoding import Encoder, EncodingError, RoomError
from q8trt.tasks.data.tokenizer_file import TOKENIZER_CONFIG, TOKENIZER_FILE, open_tokenizer, truncation_side
from q8trt.tasks.data.windows import WindowEncoder, Windows

Item = str | Sequence[str]
"""An item of an app: a text, or a pair of texts as a tuple or list of two."""


@dataclass(frozen=True, eq=False)
class Tokens(TokenRows):
    """Token ids of items; `truncated` is the number of items that were cut."""

    truncated: int
    labels: None = None

    def rows(self) -> list[tuple[list[int], list[int] | None]]:
        """Return the token ids and the token types, or None, of each item."""
        if self.token_type_ids is None:
            return [(ids, None) for ids in self.input_ids]
        return list(zip(self.input_ids, self.token_type_ids, strict=True))


class TextEncoder:
    """An encoder of texts with the tokenizer of an engine folder. It is safe to use from many threads.

    Args:
        folder: the engine folder, which contains ``tokenizer.json``.
        manifest: the engine's manifest.
        max_length: maximum tokens of an item, special tokens included. The longer text of a pair is cut first.

    Raises:
        EngineError: the tokenizer is missing or damaged.
        ConfigError: `max_length` leaves no room for text.
    """

    def __init__(self, folder: Path, manifest: Manifest, max_length: int) -> None:
        self._task, self._inputs = manifest.task, manifest.inputs
        self._folder, self.max_length = folder, max_length
        tokenizer, side = _open(folder)
        self.tokenizer = tokenizer
        try:
            self._encoder = Encoder(tokenizer, max_length, self._task.is_pair, side)
        except RoomError as error:
            raise ConfigError(
                f"bucket {max_length} leaves no room for text: {self._task.name} needs {error.shortest} tokens or more"
            ) from None
        except EncodingError as error:
            raise EngineError(f"{folder / TOKENIZER_FILE} cannot be used: {error}") from None

    @property
    def vocabulary(self) -> int:
        """The number of rows of an embedding table for all token ids, including added tokens. Ids may have gaps."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def check_all(self, items: Iterable[Item]) -> list[tuple[str, ...]]:
        """Return the texts of each item.

        Raises:
            InputError: see `check`; or `items` is one text instead of a list.
            PairError: see `check`.
        """
        one = "(text, other)" if self._task.is_pair else "text"
        if isinstance(items, str | bytes) or not isinstance(items, Iterable):
            raise InputError(f"expected a list of items, got {_shown(items)}; for one item give [{one}]")
        return [self.check(item, index) for index, item in enumerate(items)]

    def check(self, item: Item, index: int | None = None) -> tuple[str, ...]:
        """Return the texts of one item: one, or two for a task of pairs.

        Raises:
            PairError: the item is a text for a task of pairs, or a pair for a task of texts.
            InputError: a text is not a string, is empty, or contains half a surrogate pair.
        """
        where = "" if index is None else f"item {index}: "
        texts = (item,) if isinstance(item, str) else item
        if not isinstance(texts, tuple | list) or not all(isinstance(text, str) for text in texts):
            expected = "a pair of strings" if self._task.is_pair else "a string"
            raise InputError(f"{where}{_shown(item)} is not text; {self._task.name} takes {expected}", index)
        if self._task.is_pair and len(texts) != 2:
            number = "one text" if len(texts) == 1 else f"{len(texts)} texts"
            raise PairError(f"{where}{number}, but {self._task.name} takes pairs: give (text, other)", index)
        if not self._task.is_pair and len(texts) != 1:
            raise PairError(
                f"{where}{len(texts)} texts, but {self._task.name} takes single texts: give a string", index
            )
        for text in texts:
            if not text.strip():
                raise InputError(f"{where}the text is empty ({text!r}); leave such items out", index)
            if not _is_unicode(text):
                raise InputError(
                    f"{where}the text {text[:40]!a} contains half a surrogate pair, which is not a character", index
                )
        return tuple(texts)

    def encode(self, rows: Sequence[tuple[str, ...]]) -> Tokens:
        """Return the token ids of checked rows. Raises EngineError if the tokenizer fails."""
        try:
            encoded = self._encoder.encode(rows)
        except EncodingError as error:
            raise self._failure(error) from None
        types = encoded.type_ids if "token_type_ids" in self._inputs else None
        return Tokens(encoded.ids, types, encoded.truncated)

    def windows(self, encoder: WindowEncoder, rows: Sequence[tuple[str, ...]]) -> Windows:
        """Return the windows of checked rows from an encoder of windows. Raises EngineError if the tokenizer fails."""
        try:
            windows = encoder.encode(rows)
        except EncodingError as error:
            raise self._failure(error) from None
        return windows if "token_type_ids" in self._inputs else replace(windows, token_type_ids=None)

    def _failure(self, error: EncodingError) -> EngineError:
        """Return the error for a tokenizer that fails."""
        return EngineError(f"{self._folder / TOKENIZER_FILE} cannot encode a text: {error}")


def _open(folder: Path) -> tuple[Any, str]:
    """Return the tokenizer of an engine folder, and the side on which it cuts. Raises EngineError if a file is bad."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise EngineError(f"{folder} has no {TOKENIZER_FILE}; build the engine again with build_engine.py")
    try:
        tokenizer = open_tokenizer(path)
    except (OSError, MalformedError) as error:
        raise EngineError(f"{path} cannot be read: {error}") from None
    try:
        return tokenizer, truncation_side(folder)
    except (OSError, MalformedError) as error:
        raise EngineError(f"{folder / TOKENIZER_CONFIG} cannot be read: {error}") from None


def _is_unicode(text: str) -> bool:
    """Return whether `text` can be encoded in UTF-8, which tokenizers reads. A lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Return the type and the first 40 characters of `value` for a message."""
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 else f"{type(value).__name__} {text[:40]}…"
