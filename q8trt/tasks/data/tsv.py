"""The official GLUE folders: UTF-8, one example per line, tab-separated, no quoting (a quote is text)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from q8trt.errors import DataError
from q8trt.tasks.data.examples import Examples, Row, check_row, collect
from q8trt.tasks.data.opening import is_data_file, path_name, shown_names, text_lines
from q8trt.tasks.data.tabular import check_unique
from q8trt.tasks.glue import Task, canonical

log = logging.getLogger("q8trt")


def tsv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, fields) of a TSV file. Raises DataError as `text_lines` does."""
    return ((number, line.rstrip("\r\n").split("\t")) for number, line in text_lines(path))


def column_positions(columns: list[str], wanted: tuple[str, ...], where: str) -> list[int]:
    """Return the position of each wanted column. Raises DataError where one is missing, or any is there twice."""
    check_unique(columns, where)
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise DataError(f"{where}: no column {', '.join(map(repr, missing))}; found {shown_names(columns)}")
    return [columns.index(name) for name in wanted]


def read_tsv(path: Path, task: Task, split: str) -> Examples:
    """Read one official file of `task`.

    Rows of QQP that cannot be read are skipped and counted in one warning of the logger ``q8trt``, for the official
    files have a few; any other task raises at the first one.

    Raises:
        DataError: a row cannot be read; names file and line.
    """
    labelled, name = split not in task.test_splits, path_name(path)
    lines = tsv_lines(path)
    columns, header = list(task.positional), ""
    if not (columns and labelled):
        columns, header = next(lines, (1, [""]))[1], " as in the header"
    wanted = (*task.text_columns, task.label_column) if labelled else task.text_columns
    positions = column_positions(columns, wanted, f"{name}:1")
    rows: list[Row] = []
    broken: list[DataError] = []
    for number, fields in lines:
        try:
            if len(fields) != len(columns):
                raise DataError(f"{name}:{number}: {len(fields)} tab-separated fields, expected {len(columns)}{header}")
            values = [fields[position] for position in positions]
            texts, label = values[: len(task.text_columns)], values[-1] if labelled else None
            rows.append(check_row(texts, label, task, f"{name}:{number}"))
        except DataError as error:
            if not task.has_broken_rows:
                raise
            broken.append(error)
    # More than a few broken rows is another file, not QQP's known blemish.
    if len(broken) > len(rows):
        raise broken[0]
    if broken:
        log.warning("%s: skipped %d broken rows of %d", name, len(broken), len(broken) + len(rows))
    if not rows:
        raise DataError(f"{name}: no examples; expected {task.name}'s official file with {', '.join(wanted)}")
    columns_taken = {"text_columns": task.text_columns, "label_column": task.label_column if labelled else ""}
    return collect(rows, task=task, split=split, source="GLUE folder", **columns_taken)


def find_file(data_dir: Path, task: Task, name: str) -> Path | None:
    """Return the file `name` of a task, or None.

    It is in `data_dir` itself or in its subfolder named like the task (MNLI, mnli, STS_B).

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


def read_folder(data_dir: str | Path, task: Task, split: str) -> Examples:
    """Read a split from the task's own folder, or from the GLUE root above it.

    Raises:
        DataError: no such folder, no such file in it (says which ones are expected), or what `read_tsv` raises.
    """
    folder = Path(data_dir)
    name = task.files[split]
    path = find_file(folder, task, name)
    if path is None:
        problem = f"no {name} of {task.name} in it" if folder.is_dir() else "no such folder"
        expected = ", ".join(("train.tsv", *task.dev_splits.values()))
        raise DataError(
            f"{path_name(folder)}: {problem}; --data_dir takes the folder with {expected}, "
            f"or the GLUE folder that holds {task.name}/"
        )
    return read_tsv(path, task, split)
