"""The record of a run's rows: their number, columns and fingerprint, by which later commands notice a change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from q8trt import files
from q8trt.console.names import printable
from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data.examples import Examples, Features, Labels
from q8trt.tasks.metrics import METRICS

log = logging.getLogger("q8trt")


@dataclass(frozen=True)
class SplitRecord:
    """The number of rows of a split and their fingerprint, after ``--max_train_samples`` or ``--max_eval_samples``."""

    rows: int
    fingerprint: str


@dataclass(frozen=True)
class DataRecord:
    """The rows of a run, as stored in run.json.

    Attributes:
        splits: "train" and each development split -> its rows.
        text_columns: the text columns of the source; [] if it has no columns.
        label_column: the label column of the source, or "".
    """

    splits: dict[str, SplitRecord]
    text_columns: list[str] = field(default_factory=list)
    label_column: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON data, which `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> DataRecord:
        """Return the record of data from `to_dict`. Raises ConfigError for other data."""
        try:
            return files.decode(cls, data)
        except files.MalformedError as error:
            raise ConfigError(f"the record of the run's data is damaged ({error}); start a new run") from None

    def columns_line(self) -> str:
        """Return ``"columns: title, body; label: stars"``, or "" if the source has no columns."""
        label = f"; label: {self.label_column}" if self.label_column else ""
        return printable(f"columns: {', '.join(self.text_columns)}{label}" if self.text_columns else "")


def record_splits(train: Examples | Features, dev: Mapping[str, Examples | Features]) -> DataRecord:
    """Check the splits of a run against each other, and return their record.

    Warnings of the logger ``q8trt`` report rows that can be read but make the scores meaningless, such as labels that are all
    the same.

    Raises:
        DataError: the splits have their texts or labels in columns of different names, so one column may be wrong.
    """
    splits = {"train": train, **dev}
    for name, rows in dev.items():
        if train.labels is not None:  # unlabeled texts for calibration may have other columns than rows to score on
            _compare_columns(train, rows)
        _remark_on_labels(train, name, rows)
    records = {name: SplitRecord(len(rows), rows.fingerprint) for name, rows in splits.items()}
    for name in dev:
        if records[name] == records["train"]:
            log.warning("%s has the same rows as the training data, so its scores do not measure new text", name)
    return DataRecord(records, list(train.text_columns), train.label_column)


def _compare_columns(train: Examples | Features, dev: Examples | Features) -> None:
    ours, theirs = (*train.text_columns, train.label_column), (*dev.text_columns, dev.label_column)
    if train.text_columns and dev.text_columns and ours != theirs:
        raise DataError(
            f"{train.source} has the columns {', '.join(ours)}, and {dev.source} has {', '.join(theirs)}; use the same "
            "names, or choose columns with --text_column_names and --label_column_name"
        )


def _remark_on_labels(train: Examples | Features, split: str, dev: Examples | Features) -> None:
    if train.labels is None or dev.labels is None:
        return
    task = train.task
    if len(dev.labels) > 1 and METRICS[task.main_metric].is_correlation and bool(np.all(dev.labels == dev.labels[0])):
        log.warning("all labels of %s are the same, so %s is 0 for every model", split, task.main_metric)
    if task.main_metric == "f1" and not bool(np.any(dev.labels == 1)):
        log.warning("no row of %s has the label %s, so f1 is 0 for every model", split, task.labels[1])
    if task.is_regression:
        return
    if unseen := sorted(_label_ids(dev.labels) - _label_ids(train.labels)):
        names = ", ".join(task.labels[index] for index in unseen)
        log.warning("no training row has the label %s, which rows of %s have", names, split)


def _label_ids(labels: Labels) -> set[int]:
    """Return the ids of the labels that occur."""
    return set((labels if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))).tolist())
