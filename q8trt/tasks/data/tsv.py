"""The official GLUE folders: UTF-8 files with one example per line, tab-separated, without quoting."""

from __future__ import annotations

import logging
from pathlib import Path

from q8trt.errors import DataError, nearest
from q8trt.tasks.data.examples import Examples, Row, check_row, collect
from q8trt.tasks.data.opening import is_data_file, path_name, shown_names
from q8trt.tasks.data.tabular import check_unique, tsv_rows
from q8trt.tasks.glue import Task, canonical

log = logging.getLogger("q8trt")


def read_tsv(path: Path, task: Task, split: str) -> Examples:
    """Read one official file of `task`.

    The official files of QQP have a few rows that cannot be read. They are skipped, and a warning of the logger ``q8trt``
    gives their number. In other tasks such a row is an error.

    Raises:
        DataError: a column is missing, there are no examples, or a row cannot be read; the message names file and line.
    """
    labeled, name = split not in task.test_splits, path_name(path)
    lines = tsv_rows(path)
    columns, header = list(task.positional), ""
    if not (columns and labeled):
        columns, header = next(lines, ("", [""]))[1], " as in the header"
    check_unique(columns, f"{name}:1")
    wanted = (*task.text_columns, task.label_column) if labeled else task.text_columns
    if missing := [column for column in wanted if column not in columns]:
        raise DataError(
            f"{name}:1: no column {', '.join(map(repr, missing))}; found {shown_names(columns)}{nearest(missing[0], columns)}"
        )
    rows: list[Row] = []
    broken: list[DataError] = []
    for where, fields in lines:
        try:
            if len(fields) != len(columns):
                raise DataError(f"{where}: {len(fields)} tab-separated fields, expected {len(columns)}{header}")
            values = [fields[columns.index(column)] for column in wanted]
            texts, label = values[: len(task.text_columns)], values[-1] if labeled else None
            rows.append(check_row(texts, label, task, where))
        except DataError as error:
            if not task.has_broken_rows:
                raise
            broken.append(error)
    # A file with many broken rows is not an official QQP file.
    if len(broken) > len(rows):
        raise broken[0]
    if broken:
        log.warning("%s: skipped %d broken rows of %d", name, len(broken), len(broken) + len(rows))
    if not rows:
        raise DataError(f"{name}: no examples; expected {task.name}'s official file with {', '.join(wanted)}")
    columns_taken = {"text_columns": task.text_columns, "label_column": task.label_column if labeled else ""}
    return collect(rows, task=task, split=split, source="GLUE folder", **columns_taken)


def find_file(data_dir: Path, task: Task, name: str) -> Path | None:
    """Return the file `name` of a task in `data_dir` or in its subfolder with the task's name (MNLI, mnli, STS_B), or None.

    Raises:
        DataError: the folder cannot be read.
    """
    folders = [data_dir]
    try:
        if data_dir.is_dir():
            folders += sorted(path for path in data_dir.iterdir() if canonical(path.name) == task.key and path.is_dir())
    except OSError as error:
        raise DataError(f"--data_dir {path_name(data_dir)}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL character in the path
        raise DataError(f"--data_dir {path_name(data_dir)}: cannot be read: {error}") from None
    return next((folder / name for folder in folders if is_data_file(folder / name)), None)


def check_folder(folder: Path, task: Task) -> None:
    """Raise DataError if the folder of a task's files does not exist."""
    if not folder.is_dir():
        raise _no_files(folder, task, "no such folder")


def _no_files(folder: Path, task: Task, problem: str) -> DataError:
    expected = ", ".join(("train.tsv", *task.dev_splits.values()))
    return DataError(
        f"{path_name(folder)}: {problem}; give --data_dir the folder with {expected}, or the GLUE folder with {task.name}/"
    )


def read_folder(data_dir: str | Path, task: Task, split: str) -> Examples:
    """Read a split from the task's folder, or from the GLUE root above it.

    Raises:
        DataError: the folder or the file does not exist (the message lists the expected files), or see `read_tsv`.
    """
    folder = Path(data_dir)
    name = task.files[split]
    path = find_file(folder, task, name)
    if path is None:
        check_folder(folder, task)
        raise _no_files(folder, task, f"no {name} of {task.name} in it")
    return read_tsv(path, task, split)
