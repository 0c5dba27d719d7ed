"""Questions with their answers in a context: SQuAD's JSON, or JSON Lines and Parquet with the columns of the hub's ``squad``.

SQuAD's JSON has ``data`` -> ``paragraphs`` (``context``) -> ``qas`` (``id``, ``question``, ``answers``, in version 2.0
``is_impossible``). A row of the hub has ``question``, ``context`` and ``answers`` (``text``, ``answer_start``). Sources:
Rajpurkar et al. 2016 and 2018 (arXiv 1606.05250, 1806.03822).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.errors import DataError, nearest
from q8trt.tasks.data.examples import Examples, check_texts
from q8trt.tasks.data.opening import open_data, path_name, shown, shown_names
from q8trt.tasks.data.tabular import check_unique, open_table
from q8trt.tasks.data.windows import LONGEST_TEXT
from q8trt.tasks.glue import Task

#: Default columns of questions and contexts, and of answers.
TEXT_COLUMNS, ANSWERS_COLUMN = ("question", "context"), "answers"
EXTENSIONS = (".json", ".jsonl", ".parquet")
#: SQuAD 2.0's training file has 42 MB and two million values.
_LIMITS = files.Limits(size=512 * 2**20, values=50_000_000)


@dataclass(frozen=True)
class Reference:
    """A right answer: its text, and the index of its first character in the context."""

    text: str
    start: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions(Examples):
    """The questions of a split: `first` are the questions, and `second` the contexts.

    Attributes:
        references: for each question its right answers; () if the context has no answer.
    """

    second: list[str]
    references: list[tuple[Reference, ...]]

    @property
    def has_unanswerable(self) -> bool:
        """True if some question has no answer in its context, as in SQuAD 2.0."""
        return not all(self.references)

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of questions, contexts and answers, in order."""
        digest = hashlib.sha256()
        for question, context, answers in zip(self.first, self.second, self.references, strict=True):
            row = [question, context, *(part for each in answers for part in (each.text, str(each.start)))]
            digest.update(("\0".join(row) + "\0\n").encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def read_questions(
    path: str | Path,
    task: Task,
    split: str,
    text_columns: Sequence[str] | None = None,
    answers_column: str | None = None,
) -> Questions:
    """Read a file of questions with their answers.

    Args:
        path: SQuAD's .json; or .jsonl, .json (an object a line) or .parquet.
        task: the task of the model.
        split: the name of the split.
        text_columns: the columns of questions and contexts, in this order; None for `TEXT_COLUMNS`. SQuAD's JSON ignores them.
        answers_column: the column of the answers; None for `ANSWERS_COLUMN`.

    Raises:
        DataError: the file is missing or has another format, or a column is missing; or a question or context is empty or
            too long, or an answer is not at its ``answer_start``. The message names the file and the place.
    """
    path = Path(path)
    open_data(path).close()
    if path.suffix.lower() not in EXTENSIONS:
        raise DataError(
            f"{path_name(path)}: unknown extension {path.suffix!r}; expected questions as SQuAD's .json, .jsonl or .parquet"
        )
    document = _squad_document(path)
    columns = (*(text_columns or TEXT_COLUMNS), answers_column or ANSWERS_COLUMN)
    rows = list(_document_rows(document, path_name(path)) if document is not None else _table_rows(path, columns))
    if not rows:
        raise DataError(f"{path_name(path)}: no questions")
    return Questions(
        task=task,
        split=split,
        source=f"file {path.name}",
        text_columns=() if document is not None else columns[:2],
        label_column="" if document is not None else columns[2],
        first=[row.question for row in rows],
        second=[row.context for row in rows],
        labels=None,
        references=[row.references for row in rows],
    )


def squad_pairs(path: Path) -> list[tuple[str, str]] | None:
    """Return the questions and contexts of SQuAD's JSON; None for another format. Raises the errors of `read_questions`."""
    document = _squad_document(path)
    if document is None:
        return None
    return [(row.question, row.context) for row in _document_rows(document, path_name(path))]


@dataclass(frozen=True)
class _Row:
    """A checked question."""

    question: str
    context: str
    references: tuple[Reference, ...]


# The structure of SQuAD's JSON, for msgspec.


@dataclass(frozen=True)
class _Answer:
    text: str
    answer_start: int


@dataclass(frozen=True)
class _Answers:
    """The hub's form of answers: two lists of the same length."""

    text: list[str]
    answer_start: list[int]


@dataclass(frozen=True)
class _Question:
    question: str
    answers: list[_Answer] = field(default_factory=list)
    is_impossible: bool = False


@dataclass(frozen=True)
class _Paragraph:
    context: str
    qas: list[_Question]


@dataclass(frozen=True)
class _Article:
    paragraphs: list[_Paragraph]


@dataclass(frozen=True)
class _Document:
    data: list[_Article]


def _squad_document(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a SQuAD file; None for Parquet and JSON Lines."""
    if path.suffix.lower() != ".json":
        return None
    try:
        data = files.read_limited(path, _LIMITS)
    except (OSError, files.MalformedError) as error:
        raise DataError(f"{path_name(path)}: cannot be read: {error}") from None
    try:
        document = files.parse_json(data.removeprefix(b"\xef\xbb\xbf"), _LIMITS)
    except files.MalformedError as error:
        if _is_json(data.lstrip().partition(b"\n")[0]):
            return None  # JSON Lines, whose reader names the line in its errors
        raise DataError(f"{path_name(path)}: {error}; expected SQuAD's JSON, or one JSON object a line") from None
    if isinstance(document, dict) and "data" in document:
        return document
    if isinstance(document, dict) and data.strip().count(b"\n") == 0:
        return None  # JSON Lines of one row
    raise DataError(f"{path_name(path)}: no key 'data'; expected SQuAD's JSON, or one JSON object a line")


def _is_json(data: bytes) -> bool:
    try:
        files.parse_json(data, _LIMITS)
    except files.MalformedError:
        return False
    return True


def _document_rows(document: dict[str, Any], name: str) -> Iterator[_Row]:
    """Yield the questions of a SQuAD document."""
    try:
        articles = files.decode(_Document, document, partial=True).data
    except files.MalformedError as error:
        raise DataError(f"{name}: {error}; expected SQuAD's JSON") from None
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(article.paragraphs):
            for q, each in enumerate(paragraph.qas):
                where = f"{name}: data[{a}].paragraphs[{p}].qas[{q}]"
                answers = [Reference(answer.text, answer.answer_start) for answer in each.answers]
                if answers and each.is_impossible:
                    raise DataError(f"{where}: is_impossible is true, and there are answers; remove one of them")
                yield _row(each.question, paragraph.context, answers, where)


def _table_rows(path: Path, columns: Sequence[str]) -> Iterator[_Row]:
    """Yield the questions of JSON Lines or Parquet with three columns."""
    table = open_table(path, nested=columns[2:])
    check_unique(table.columns, path_name(path))
    if missing := [name for name in columns if name not in table.columns] if table.columns else []:
        raise DataError(
            f"{path_name(path)}: no column {' and '.join(map(repr, missing))}; found {shown_names(table.columns)}"
            f"{nearest(missing[0], table.columns)} (--text_column_names and --label_column_name choose others)"
        )
    for where, (question, context, answers) in table.select(columns):
        pairs = _answers(answers, f"{where}: column {columns[-1]!r}")
        yield _row(question, context, [Reference(*pair) for pair in pairs], where)


def _answers(value: Any, where: str) -> Iterator[tuple[str, int]]:
    """Yield the text and the start of each answer in a row, which is an object of two lists or a list of objects."""
    try:
        if isinstance(value, list):
            for index, item in enumerate(value):
                where = f"{where}[{index}]"
                each = files.decode(_Answer, item, partial=True)
                yield each.text, each.answer_start
            return
        answers = files.decode(_Answers, value, partial=True)
    except files.MalformedError as error:
        raise DataError(f"{where}: {error}; expected text and answer_start of each answer") from None
    if len(answers.text) != len(answers.answer_start):
        raise DataError(f"{where}: {len(answers.text)} texts, but {len(answers.answer_start)} values of answer_start")
    yield from zip(answers.text, answers.answer_start, strict=True)


def _row(question: Any, context: Any, answers: Sequence[Reference], where: str) -> _Row:
    """Return a question; raise DataError if it, its context or an answer cannot be used."""
    check_texts((question, context), where)
    if len(context) > LONGEST_TEXT:
        raise DataError(f"{where}: a context of {len(context):,} characters; q8trt reads {LONGEST_TEXT:,} or fewer")
    for answer in answers:
        if not answer.text.strip():
            raise DataError(f"{where}: an answer has no text; a question without an answer needs an empty list")
        at = context[max(answer.start, 0) :][: len(answer.text)]
        if answer.start < 0 or at != answer.text:
            raise DataError(
                f"{where}: the answer {shown(answer.text)} is not at answer_start {answer.start}, where the context has "
                f"{shown(at)}"
            )
    return _Row(question, context, tuple(answers))
