"""Texts without labels: a random sample of the rows of a file of any size, or the built-in sentences.

A file is read as a stream, and a reservoir keeps the sampled rows (Vitter, "Random Sampling with a Reservoir", 1985,
algorithm R). Every row is equally likely, and only the sampled rows are in memory.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from q8trt.console.counts import plural
from q8trt.errors import DataError
from q8trt.tasks.data.examples import Examples
from q8trt.tasks.data.opening import open_data, path_name, shown, text_lines
from q8trt.tasks.data.questions import squad_pairs
from q8trt.tasks.data.sample import sample_examples
from q8trt.tasks.data.tabular import Table, check_unique, choose_text_columns, open_table, text_column_names
from q8trt.tasks.glue import Task
from q8trt.tasks.heads import HeadKind

log = logging.getLogger("q8trt")

#: Default maximum numbers of rows for training and for the comparison of answers.
TRAIN_ROWS, DEV_ROWS = 10_000, 1_000
_PLAIN = (".txt", ".text")
_SEED = 17


def read_texts(
    path: str | Path,
    task: Task,
    split: str,
    text_columns: Sequence[str] | None = None,
    train_rows: int | None = None,
    dev_rows: int | None = None,
) -> Examples:
    """Return a sample of rows without labels from plain text (a text a line), CSV, TSV, JSON Lines or Parquet.

    The rows are the same in each call. "train" and "dev" have no row in common, unless the file has only one or two.

    Args:
        path: the file.
        task: the task of the model; pairs need two columns, embeddings use one or two.
        split: "train" or "dev".
        text_columns: the columns of the texts; None for the usual names.
        train_rows, dev_rows: maximum number of rows of each split; None for `TRAIN_ROWS` and `DEV_ROWS`.

    Raises:
        DataError: the file or a column is missing, or the file is not text or has no text.
    """
    path = Path(path)
    train_rows, dev_rows = train_rows or TRAIN_ROWS, dev_rows or DEV_ROWS
    columns, rows = _open(path, task, text_columns)
    chosen, empty = _reservoir(rows, train_rows + dev_rows)
    if empty and split == "train":  # once, although both splits read the file
        log.warning("%s: skipped %s without a text", path_name(path), plural(empty, "row", ","))
    if not chosen:
        raise DataError(f"{path_name(path)}: no text; expected a text in each row; add rows, or give another file")
    held_out = min(dev_rows, len(chosen) // 3)  # in a small file, most rows are for calibration
    parts = {"dev": chosen[:held_out] or chosen, "train": chosen[held_out:][:train_rows]}
    second = [texts[1] for texts in parts[split]] if len(chosen[0]) == 2 else None
    first = [texts[0] for texts in parts[split]]
    source = f"file {path.name}"
    return Examples(
        task=task, split=split, source=source, text_columns=columns, first=first, second=second, labels=None
    )


def sample_texts(task: Task, split: str) -> Examples:
    """Return the built-in sentences without labels: pairs for tasks of pairs and for embeddings, else single sentences."""
    examples = replace(sample_examples(split), task=task, labels=None)
    if task.is_pair or task.embedding:
        return examples
    return replace(examples, first=[*examples.first, *(examples.second or ())], second=None)


def _reservoir(rows: Iterator[tuple[str, ...] | None], count: int) -> tuple[list[tuple[str, ...]], int]:
    """Return a random sample of `count` rows, or all if there are fewer, in random order, and the number of rows without text."""
    generator, chosen, number, empty = random.Random(_SEED), [], 0, 0
    for texts in rows:
        if texts is None:
            empty += 1
            continue
        if number < count:
            chosen.append(texts)
        elif (place := generator.randrange(number + 1)) < count:
            chosen[place] = texts
        number += 1
    generator.shuffle(chosen)
    return chosen, empty


def _open(
    path: Path, task: Task, text_columns: Sequence[str] | None
) -> tuple[tuple[str, ...], Iterator[tuple[str, ...] | None]]:
    """Return the columns of the texts, () for plain text, and the rows; None for a row of a table without a text."""
    open_data(path).close()
    if path.suffix.lower() in _PLAIN:
        if task.is_pair and not task.embedding:
            raise DataError(
                f"{path_name(path)}: plain text has one text a line, and the model needs pairs; use .csv or .jsonl"
            )
        return (), ((text,) for _, line in text_lines(path) if (text := line.strip()))
    if task.head.kind is HeadKind.QUESTION_ANSWERING and (pairs := squad_pairs(path)) is not None:
        return (), iter(pairs)
    table = open_table(path, others=_PLAIN[:1])
    if not table.columns:
        return (), iter(())
    check_unique(table.columns, path_name(path))
    columns = _columns(path, table, task, text_columns)
    return tuple(columns), _texts(table, columns)


def _columns(path: Path, table: Table, task: Task, chosen: Sequence[str] | None) -> Sequence[str]:
    """Return the one or two columns of the texts."""
    counts = (False, True) if task.embedding else (task.is_pair,)
    own_names = task if task.head.kind is HeadKind.QUESTION_ANSWERING else None
    choices = [names for is_pair in counts for names in text_column_names(is_pair, own_names, chosen)]
    if len(table.columns) == 1 and False in counts and not chosen:
        return table.columns
    return choose_text_columns(path_name(path), table.columns, choices, "--text_column_names chooses others")


def _texts(table: Table, columns: Sequence[str]) -> Iterator[tuple[str, ...] | None]:
    """Yield the texts of each row; None if one is empty."""
    for where, values in table.select([*columns, columns[-1]]):  # the Parquet reader expects labels in the last column
        texts = values[:-1]
        if wrong := next((text for text in texts if not isinstance(text, str | None)), None):
            raise DataError(f"{where}: text {shown(wrong)}, expected a string")
        yield tuple(texts) if all(text and text.strip() for text in texts) else None
