"""Sentences with tagged words: CoNLL, CoNLL-U, or JSON Lines and Parquet with lists of words and of tags.

CoNLL has one word a line, with columns separated by tabs or spaces, the word first and the tag last, and a blank line between
sentences (Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task"). CoNLL-U has the word in its
second column and the part of speech in its fourth (universaldependencies.org, "CoNLL-U Format").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.errors import DataError, nearest
from q8trt.tasks.data.examples import IGNORED, Examples, Features
from q8trt.tasks.data.labels import accepted_labels, check_label
from q8trt.tasks.data.opening import open_data, path_name, shown, shown_names, text_lines
from q8trt.tasks.data.tabular import check_unique, open_table
from q8trt.tasks.data.windows import LONGEST_TEXT, WindowEncoder, WindowSizes
from q8trt.tasks.glue import Task

#: Usual names of the columns of words and of tags.
WORD_COLUMNS = ("words", "tokens")
TAG_COLUMNS = ("tags", "ner_tags", "labels", "pos_tags", "upos")
_TABLES = (".jsonl", ".json", ".parquet")
_CONLL = (".conll", ".conllu", ".txt", ".iob", ".iob2", ".bio", ".tsv")
#: Columns of CoNLL-U: number, word, lemma, part of speech, and six more.
_CONLLU_COLUMNS, _NUMBER, _FORM, _UPOS = 10, 0, 1, 3
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentences(Examples):
    """The sentences of a split; `first` has their words joined by spaces.

    Attributes:
        words: N lists of words.
        tags: N lists of label ids, one for each word.
    """

    words: list[list[str]]
    tags: list[list[int]]

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of words and tags, in order."""
        digest = hashlib.sha256()
        for words, tags in zip(self.words, self.tags, strict=True):
            digest.update(("\0".join([*words, *map(str, tags)]) + "\0\n").encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def tokenized(self, tokenizer: Any, max_length: int) -> tuple[Features, int]:
        """Return the tokens with their labels, and the number of sentences that were truncated to `max_length` tokens.

        The first token of a word has the word's tag, the others have `IGNORED`, as in transformers' example ``run_ner.py``.
        The words are joined by spaces before they are tokenized, as an engine reads them.

        Raises:
            EncodingError: the tokenizer fails.
        """
        encoder = WindowEncoder(tokenizer.backend_tokenizer, WindowSizes(max_length, stride=0), is_pair=False)
        windows = encoder.encode([(text,) for text in self.first])
        firsts = np.unique(windows.rows, return_index=True)[1].tolist()
        labels = np.empty(len(self), object)
        for row, window in enumerate(firsts):
            labels[row] = np.full(len(windows.input_ids[window]), IGNORED, np.int64)
            for token, word in _first_tokens(windows.offsets[window], self.words[row], self.first[row]):
                labels[row][windows.places[window] + token] = self.tags[row][word]
        types = windows.token_type_ids if "token_type_ids" in tokenizer.model_input_names else None
        features = Features(
            **self.origin,
            input_ids=[windows.input_ids[window] for window in firsts],
            token_type_ids=types and [types[window] for window in firsts],
            labels=labels,
        )
        return features, len(set(windows.rows[windows.first > 0].tolist()))


def _first_tokens(offsets: np.ndarray, words: Sequence[str], text: str) -> Iterator[tuple[int, int]]:
    """Yield the number of the first token of each word, and the number of the word.

    A token belongs to the word of its last character, because a token of byte-level BPE may begin with the space before the
    word. A token that is only a space belongs to the word after it.
    """
    word_of = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
    seen = -1
    for token, (start, end) in enumerate(offsets.tolist()):
        place = max(end - 1, start)
        word = int(word_of[min(place + (text[place : place + 1] == " "), len(word_of) - 1)])
        if word > seen:
            yield token, word
            seen = word


def read_sentences(
    path: str | Path,
    task: Task,
    split: str,
    word_column: str | None = None,
    tag_column: str | None = None,
) -> Sentences:
    """Read a file of sentences with tagged words.

    Args:
        path: .conllu, another CoNLL file, .jsonl, .json (an object a line) or .parquet.
        task: the task, whose labels are the tags. A number is a label id; if a Parquet file of `datasets` has class names,
            it is the index of a name.
        split: the name of the split.
        word_column: the column of the words; None for one of `WORD_COLUMNS`. CoNLL files ignore it.
        tag_column: the column of the tags; None for one of `TAG_COLUMNS`.

    Raises:
        DataError: the file or a column is missing, the extension is unknown, the numbers of words and tags differ, a word is
            empty, or a tag is not among the labels. The message names the file and the line or row.
    """
    path = Path(path)
    open_data(path).close()
    kind = path.suffix.lower()
    columns = ("", "")
    if kind in _TABLES:
        columns, rows = _table_rows(path, word_column, tag_column)
    elif kind in _CONLL:
        rows = _conll_rows(path)
    else:
        expected = ", ".join((*_CONLL, *_TABLES))
        raise DataError(
            f"{path_name(path)}: unknown extension {path.suffix!r} for words with tags; expected one of {expected}"
        )
    spellings = accepted_labels(task)
    words, tags = [], []
    for places, row_words, row_tags in rows:
        words.append(row_words)
        tags.append([check_label(tag, task, where, spellings) for where, tag in zip(places, row_tags, strict=True)])
    if not words:
        raise DataError(f"{path_name(path)}: no sentences")
    return Sentences(
        task=task,
        split=split,
        source=f"file {path.name}",
        text_columns=columns[:1] if columns[0] else (),
        label_column=columns[1],
        first=[" ".join(each) for each in words],
        second=None,
        labels=None,
        words=words,
        tags=tags,
    )


_Row = tuple[list[str], list[str], list[Any]]
"""The places of the words of a sentence (``file:line`` or ``file:row: word 2``), the words and their tags."""


def _conll_rows(path: Path) -> Iterator[_Row]:
    name, characters = path_name(path), 0
    parse = _conllu_word if path.suffix.lower() == ".conllu" else _conll_word
    places: list[str] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in text_lines(path):
        if not (line := line.strip()):
            if words:
                yield places, words, tags
            places, words, tags, characters = [], [], [], 0
        elif (pair := parse(line, f"{name}:{number}")) is not None:
            places.append(f"{name}:{number}")
            words.append("_".join(pair[0].split()))
            tags.append(pair[1])
            characters += len(words[-1]) + 1
            if characters > LONGEST_TEXT:
                raise DataError(
                    f"{places[0]}: a sentence of more than {LONGEST_TEXT:,} characters; a blank line ends one"
                )
    if words:
        yield places, words, tags


def _conll_word(line: str, where: str) -> tuple[str, str] | None:
    """Return the word and the tag of a line; None for a line that begins a document."""
    fields = line.split("\t" if "\t" in line else None)
    if fields[0] == _DOCUMENT:
        return None
    if len(fields) < 2 or not fields[0].strip():
        raise DataError(f"{where}: {shown(line)}, expected a word and its tag, separated by a tab or a space")
    return fields[0], fields[-1].strip()


def _conllu_word(line: str, where: str) -> tuple[str, str] | None:
    """Return the word and the part of speech of a line; None for a comment, a token of several words, or an empty node."""
    fields = line.split("\t")
    if line.startswith("#"):
        return None
    if len(fields) != _CONLLU_COLUMNS or not fields[_FORM].strip():
        raise DataError(f"{where}: {len(fields)} columns, expected CoNLL-U's {_CONLLU_COLUMNS}, separated by tabs")
    return (fields[_FORM], fields[_UPOS]) if fields[_NUMBER].isdigit() else None


def _table_rows(path: Path, word_column: str | None, tag_column: str | None) -> tuple[tuple[str, str], Iterator[_Row]]:
    """Return the columns of the words and of the tags, and the rows."""
    columns = open_table(path).columns
    check_unique(columns, path_name(path))
    chosen = []
    for name, usual in ((word_column, WORD_COLUMNS), (tag_column, TAG_COLUMNS)):
        names = (name,) if name else usual
        column = next((each for each in names if each in columns), None)
        if column is None and columns:
            raise DataError(
                f"{path_name(path)}: no column {' or '.join(map(repr, names))}; found {shown_names(columns)}"
                f"{nearest(names[0], columns)} (--text_column_names and --label_column_name choose others)"
            )
        chosen.append(column or names[0])
    return (chosen[0], chosen[1]), _listed_rows(path, chosen) if columns else iter(())


def _listed_rows(path: Path, columns: Sequence[str]) -> Iterator[_Row]:
    names = None
    if path.suffix.lower() == ".parquet":
        from q8trt.tasks.data.parquet import class_names

        names = class_names(path, columns[1])
    for where, (words, tags) in open_table(path, nested=columns).select(columns):
        for column, values in zip(columns, (words, tags), strict=True):
            if not isinstance(values, list) or not values:
                raise DataError(
                    f"{where}: column {column!r} has {shown(values)}, expected a list with a value for each word"
                )
        if len(words) != len(tags):
            raise DataError(f"{where}: {len(words)} words, but {len(tags)} tags; expected one tag for each word")
        for word in words:
            if not isinstance(word, str) or not word.strip() or "\0" in word:
                raise DataError(f"{where}: word {shown(word)}, expected a string that is not empty")
        if sum(map(len, words)) + len(words) > LONGEST_TEXT:
            raise DataError(f"{where}: a sentence of more than {LONGEST_TEXT:,} characters; give one sentence a row")
        if names is not None:
            tags = [names[tag] if type(tag) is int and 0 <= tag < len(names) else tag for tag in tags]
        places = [f"{where}: word {number}" for number in range(1, len(words) + 1)]
        yield places, ["_".join(word.split()) for word in words], tags
