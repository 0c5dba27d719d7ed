"""The containers of a split: `Examples` holds text, `Features` token ids; and the checks that every row goes through.

Both are columnar and immutable, and carry where they came from, so that a result can always say what it was measured
on.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from q8trt.errors import DataError
from q8trt.hardware.packages import install_module
from q8trt.tasks.data.labels import check_label, check_score
from q8trt.tasks.data.opening import shown
from q8trt.tasks.glue import Task

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]
Row = tuple[Sequence[str], float | int | None]
"""The texts of one example (one or two) and its label id or score."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """The origin of a split.

    Attributes:
        task: what its labels mean.
        split: its name, such as "train" or "dev".
        source: one line on where it was read from.
        is_sample: whether q8trt wrote it itself.
        text_columns: the columns of the file that the texts were taken from; () where the file has no columns.
        label_column: the column that the labels were taken from, or "".
    """

    task: Task
    split: str
    source: str
    is_sample: bool = False
    text_columns: tuple[str, ...] = ()
    label_column: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples(Origin):
    """The texts of a split.

    Attributes:
        first: N texts.
        second: N texts, or None for a task of single sentences.
        labels: (N,) float32 scores for regression, int64 label ids otherwise; None for an unlabelled test split.
    """

    first: list[str]
    second: list[str] | None
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, count: int | None) -> Examples:
        """The first `count` examples; all of them for None."""
        second = None if self.second is None else self.second[:count]
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, first=self.first[:count], second=second, labels=labels)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over texts and labels, in order."""
        columns = (self.first,) if self.second is None else (self.first, self.second)
        return _digest(zip(*columns, strict=True), self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features(Origin):
    """A tokenized split without padding: a map-style dataset for a torch DataLoader or a transformers Trainer.

    ``features[i]`` is a dict of ``input_ids``, ``attention_mask`` (all ones), ``token_type_ids`` where the tokenizer
    gives them, and ``labels`` (float for regression, int otherwise) where there are any.

    Attributes:
        input_ids: N lists of token ids, special tokens included.
        token_type_ids: N lists, 0 for the first text and its [SEP], 1 for the second; None if the model takes none.
        labels: (N,) float32 scores for regression, int64 label ids otherwise; None for an unlabelled test split.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.input_ids[index]
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if self.token_type_ids is not None:
            row["token_type_ids"] = self.token_type_ids[index]
        if self.labels is not None:
            row["labels"] = self.labels[index].item()
        return row

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) tokens per example."""
        return np.fromiter(map(len, self.input_ids), dtype=np.int64, count=len(self.input_ids))

    def take(self, count: int | None) -> Features:
        """The first `count` examples; all of them for None."""
        types = None if self.token_type_ids is None else self.token_type_ids[:count]
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, input_ids=self.input_ids[:count], token_type_ids=types, labels=labels)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over token ids and labels, in order."""
        return _digest(([" ".join(map(str, ids))] for ids in self.input_ids), self.labels)


def _digest(rows: Iterable[Sequence[str]], labels: Labels | None) -> str:
    digest = hashlib.sha256()
    for row in rows:
        # NUL ends a text and a newline ends a row, so that ("a", "b") and ("a b",) differ.
        digest.update(("\0".join(row) + "\0\n").encode("utf-8", "surrogatepass"))
    if labels is not None:
        digest.update(labels.astype(labels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def check_row(
    texts: Sequence[object], label: object, task: Task, where: str, spellings: Mapping[str, int] | None = None
) -> Row:
    """Check one example and turn its label into a label id or a score.

    Args:
        texts: one or two non-empty strings.
        label: as the file has it; None for an example without label.
        task: gives the labels or the range of scores.
        where: the prefix of errors, e.g. ``"train.tsv:12"``.
        spellings: label as written -> label id; by default those of the official TSV.

    Raises:
        DataError: an empty text, an unknown label or a score out of range; names `where`.
    """
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: text {shown(text)}, expected a string that is not empty")
        if "\0" in text:
            raise DataError(f"{where}: text {shown(text)} holds a NUL character; remove it")
    if label is None:
        return texts, None  # type: ignore[return-value]  # each was just seen to be str
    if task.is_regression:
        return texts, check_score(label, task, where)  # type: ignore[return-value]
    return texts, check_label(label, task, where, spellings)  # type: ignore[return-value]


def collect(rows: Sequence[Row], *, task: Task, **origin: Any) -> Examples:
    """Return `Examples` of rows that `check_row` passed; the split is unlabelled if the first row is.

    Args:
        rows: texts and labels.
        task: what the labels mean.
        origin: the other fields of `Origin`.
    """
    labels = None if rows[0][1] is None else label_array([label for _, label in rows], task)
    return Examples(
        task=task,
        **origin,
        first=[texts[0] for texts, _ in rows],
        second=[texts[1] for texts, _ in rows] if task.is_pair else None,
        labels=labels,
    )


def label_array(labels: Sequence[float | int | None], task: Task) -> Labels:
    """(N,) float32 for regression, int64 otherwise."""
    return np.array(labels, dtype=np.float32) if task.is_regression else np.array(labels, dtype=np.int64)


def require(module: str, purpose: str) -> Any:
    """Import an optional `module`.

    Raises:
        DataError: it is not installed; says what for, and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DataError(f"{purpose} needs {module.partition('.')[0]}: {install_module(module)}") from error
