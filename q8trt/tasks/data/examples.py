"""The rows of a split, as text (`Examples`) or token ids (`Features`), and the checks of a row.

Both are columnar and immutable, and have an `Origin`, so that a report can name its data.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from q8trt.console.counts import plural
from q8trt.errors import DataError
from q8trt.hardware.packages import install_module
from q8trt.tasks.data.labels import check_label, check_labels, check_score
from q8trt.tasks.data.opening import shown
from q8trt.tasks.glue import Task

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.object_]
#: Label of tokens that losses and metrics ignore, such as special tokens (torch's `ignore_index`).
IGNORED = -100
Row = tuple[Sequence[str], float | int | tuple[int, ...] | None]
"""The texts of one example (one or two) and its label id, score, or label ids."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """The origin of a split.

    Attributes:
        task: the task, which defines the labels.
        split: the name of the split, such as "train" or "dev".
        source: the place that the split was read from, on one line.
        is_sample: the split is q8trt's built-in sample.
        text_columns: the text columns of the file; () if the file has no columns.
        label_column: the label column of the file, or "".
    """

    task: Task
    split: str
    source: str
    is_sample: bool = False
    text_columns: tuple[str, ...] = ()
    label_column: str = ""

    @property
    def origin(self) -> dict[str, Any]:
        """The fields of `Origin` by name, to make other rows of the same origin."""
        return {each.name: getattr(self, each.name) for each in fields(Origin)}

    def take(self, count: int | None) -> Self:
        """Return the first `count` examples; all of them for None."""
        columns = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in self.origin}
        first: dict[str, Any] = {name: None if rows is None else rows[:count] for name, rows in columns.items()}
        return replace(self, **first)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples(Origin):
    """The texts of a split.

    Attributes:
        first: N texts.
        second: N texts, or None for a task of single sentences.
        labels: (N,) float32 scores for regression, (N, labels) float32 of 0 and 1 for several labels a row, (N,) int64 label
            ids otherwise; None if the rows have no labels.
    """

    first: list[str]
    second: list[str] | None
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.first)

    def single_texts(self, prompt: str = "") -> Examples:
        """Return each text as a row, with `prompt` before it; the two texts of a pair follow each other, with one label."""
        if self.second is None:
            return replace(self, first=[prompt + text for text in self.first])
        texts = [prompt + text for pair in zip(self.first, self.second, strict=True) for text in pair]
        return replace(self, first=texts, second=None, labels=None if self.labels is None else self.labels.repeat(2))

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of texts and labels, in order."""
        columns = (self.first,) if self.second is None else (self.first, self.second)
        return _digest(zip(*columns, strict=True), self.labels)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Token ids of N examples without padding: a map-style dataset, whose items are dicts of the model's inputs.

    Attributes:
        input_ids: N lists of token ids, special tokens included.
        token_type_ids: N lists, 0 for the first text and its [SEP], 1 for the second; None if the model has no token types.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.input_ids[index]
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if self.token_type_ids is not None:
            row["token_type_ids"] = self.token_type_ids[index]
        return row

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) tokens per example."""
        return np.fromiter(map(len, self.input_ids), dtype=np.int64, count=len(self.input_ids))


@dataclass(frozen=True, kw_only=True, eq=False)
class Features(TokenRows, Origin):
    """A tokenized split for a torch DataLoader or a transformers Trainer; items have ``labels`` if the split has them.

    Attributes:
        labels: see `Examples`. For question answering (N, 2) int64, the first and the last token of the answer. For token
            classification (N,) objects, int64 arrays with a label id or IGNORED for each token.
    """

    labels: Labels | None

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        return row if self.labels is None else {**row, "labels": self.labels[index].tolist()}

    def select(self, indices: Sequence[int]) -> Self:
        """Return the rows at `indices`, in that order."""
        types, labels = self.token_type_ids, self.labels
        return replace(
            self,
            input_ids=[self.input_ids[index] for index in indices],
            token_type_ids=None if types is None else [types[index] for index in indices],
            labels=None if labels is None else labels[list(indices)],
        )

    @property
    def question_count(self) -> int | None:
        """The number of questions, if the rows are windows of questions; None if each row is an example."""
        return None

    def titled(self, work: str) -> str:
        """Return the title of a progress bar over the rows: `work`, with the number of questions if the rows are windows."""
        return work if self.question_count is None else f"{work}, {counted(len(self), self.question_count)}"

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of token ids and labels, in order."""
        return _digest(([" ".join(map(str, ids))] for ids in self.input_ids), self.labels)


def counted(rows: int, questions: int | None = None, separator: str = "") -> str:
    """Return a number of rows for a report: "143 rows", or "120 questions, 143 windows" if the rows are windows of questions.

    `separator` is the separator of thousands, "," or "".
    """
    if questions is None:
        return plural(rows, "row", separator)
    windows = f", {plural(rows, 'window', separator)}" if rows != questions else ""
    return f"{plural(questions, 'question', separator)}{windows}"


def _digest(rows: Iterable[Sequence[str]], labels: Labels | None) -> str:
    digest = hashlib.sha256()
    for row in rows:
        # NUL ends a text and a newline ends a row, so that ("a", "b") and ("a b",) differ.
        digest.update(("\0".join(row) + "\0\n").encode("utf-8", "surrogatepass"))
    if labels is not None:
        for values in labels if labels.dtype == object else (labels,):
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def check_texts(texts: Sequence[object], where: str) -> None:
    """Raise DataError if a text is not a string, is empty or has a NUL character; the message begins with `where`."""
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: text {shown(text)}, expected a string that is not empty")
        if "\0" in text:
            raise DataError(f"{where}: text {shown(text)} has a NUL character; remove it")


def check_row(
    texts: Sequence[object], label: object, task: Task, where: str, spellings: Mapping[str, int] | None = None
) -> Row:
    """Check one example, and convert its label to a label id, a score, or a tuple of label ids.

    Args:
        texts: one or two strings.
        label: the label in the file; None for an example without a label.
        task: the task, which has the labels or the range of scores.
        where: the prefix of errors, such as ``"train.tsv:12"``.
        spellings: label in a file -> label id; None for the spellings of the official TSV.

    Raises:
        DataError: a text is empty, a label is unknown, or a score is out of range.
    """
    check_texts(texts, where)
    if label is None:
        return texts, None  # type: ignore[return-value]  # each was just seen to be str
    if task.is_regression:
        return texts, check_score(label, task, where)  # type: ignore[return-value]
    if task.is_multi_label:
        return texts, check_labels(label, task, where, spellings)  # type: ignore[return-value]
    return texts, check_label(label, task, where, spellings)  # type: ignore[return-value]


def collect(rows: Sequence[Row], *, task: Task, **origin: Any) -> Examples:
    """Return `Examples` of rows from `check_row`; they have no labels if the first row has none.

    `origin` has the other fields of `Origin`.
    """
    labels = None if rows[0][1] is None else label_array([label for _, label in rows], task)
    return Examples(
        task=task,
        **origin,
        first=[texts[0] for texts, _ in rows],
        second=[texts[1] for texts, _ in rows] if task.is_pair else None,
        labels=labels,
    )


def label_array(labels: Sequence[Any], task: Task) -> Labels:
    """Return the labels as an array: (N,) float32 for regression, (N, labels) float32 of 0 and 1 for sets, else (N,) int64."""
    if task.is_multi_label:
        rows = np.zeros((len(labels), task.num_labels), np.float32)
        for row, ids in zip(rows, labels, strict=True):
            row[list(ids)] = 1
        return rows
    return np.array(labels, dtype=np.float32) if task.is_regression else np.array(labels, dtype=np.int64)


def require(module: str, purpose: str) -> Any:
    """Import an optional module. Raises DataError, with the command that installs it, if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(f"{purpose} needs {module.partition('.')[0]}: {install_module(module)}") from error
