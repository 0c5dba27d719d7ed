"""The columns of a scoring job: text columns, columns of answers, and the lines of the output."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.manifest import TaskInfo
from q8trt.errors import ConfigError, DataError
from q8trt.inference.answers import Answer, LabelSet
from q8trt.inference.files.config import OF_EMBEDDINGS, OF_SPANS, ScoringConfig
from q8trt.inference.files.places import REJECTED_HEADER
from q8trt.inference.files.records import TEXT_COLUMN, Record
from q8trt.inference.tagging import Span
from q8trt.tasks.data.labels import join_labels
from q8trt.tasks.data.questions import TEXT_COLUMNS as QUESTION_COLUMNS
from q8trt.tasks.data.tabular import choose_text_columns, text_column_names
from q8trt.tasks.glue import TASKS
from q8trt.tasks.heads import HeadKind
from q8trt.tasks.spans import SpanAnswer

Value = str | float
#: The answer to a row: a score, a label, a set of labels, an embedding float32 (dimension,), spans, or a part of the context.
Reply = float | Answer | LabelSet | np.ndarray | list[Span] | SpanAnswer
#: Kind of head -> names of the columns of its answers, for heads without a score or labels.
_NAMES = {
    HeadKind.EMBEDDING: ("embedding",),
    HeadKind.TOKEN_CLASSIFICATION: ("spans",),
    HeadKind.QUESTION_ANSWERING: ("answer", "answer_start", "answer_end", "score"),
}
_log = logging.getLogger(__name__)
#: Maximum characters that are quoted from a rejected row.
_QUOTED = 2000
#: Characters with which a formula of a spreadsheet begins; the last four are full-width.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Columns:
    """The columns of one job.

    Attributes:
        inputs: the columns of the input, from its header or its first object.
        texts: the one or two text columns.
        answers: the added columns: a score, an embedding, or spans; an answer, its start, its end and its probability; or
            a label, followed by the probability of each label.
        labels: the labels in the order of their probabilities; () for a regression.
        kind: the ending of the output, such as ".csv".
        safe_csv: whether ' is put before a cell that a spreadsheet would run as a formula.
    """

    inputs: tuple[str, ...]
    texts: tuple[str, ...]
    answers: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str
    safe_csv: bool = False

    def reason(self, values: Mapping[str, Any]) -> str:
        """Return the reason why a row cannot be scored or written; "" if it can."""
        for name in self.texts:
            value = values.get(name)
            if value is None:
                return f"column {name!r} {'has no value' if name in values else 'is missing'}"
            if not isinstance(value, str):
                return (
                    f"column {name!r} is {json.dumps(value, ensure_ascii=False, default=repr)[:40]}, expected a string"
                )
            if not value.strip():
                return f"column {name!r} is empty"
        if clash := next((name for name in self.answers if name in values), None):
            return f"key {clash!r} would be overwritten by the answer; the first row has no such key"
        if self.kind not in (".jsonl", ".npy") and (
            extra := next((name for name in values if name not in self.inputs), None)
        ):
            return (
                f"key {extra!r} is not among the first row's ({', '.join(self.inputs)}); --output .jsonl keeps all keys"
            )
        return ""

    def text(self, values: Mapping[str, Any]) -> str | tuple[str, str]:
        """Return the item for the engine, a text or a pair."""
        return values[self.texts[0]] if len(self.texts) == 1 else (values[self.texts[0]], values[self.texts[1]])

    def header(self) -> bytes:
        """Return the first line of the output; b"" for JSON Lines."""
        return b"" if self.is_json else self._line([*self.inputs, *self.answers])

    @property
    def is_json(self) -> bool:
        """True if the job writes JSON Lines."""
        return self.kind in (".jsonl", *OF_EMBEDDINGS)

    @property
    def has_every_row(self) -> bool:
        """True if row i of the output is row i of the input. An array has no other columns, so its rejected rows are NaN."""
        return self.kind == ".npy"

    def lines(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[Reply | None]) -> bytes:
        """Return the lines of the output: rows with their answers. An answer that is None becomes null."""
        return b"".join(
            _json_line({**values, **dict(zip(self.answers, self.cells(answer), strict=True))})
            if self.is_json
            else self._line([*(_cell(values.get(name)) for name in self.inputs), *self.cells(answer)])
            for values, answer in zip(rows, answers, strict=True)
        )

    def rejected(self, records: Sequence[Record], header: bool) -> bytes:
        """Return the lines of rejected rows; with `header`, the first line of the file precedes them."""
        lines = [REJECTED_HEADER] if header and records else []
        for record in records:
            row = record.raw.decode("utf-8", "replace").rstrip("\r\n")[:_QUOTED]
            lines.append(_csv_line(self._safe([record.line, record.reason, row])))
        return b"".join(lines)

    def cells(self, answer: Reply | None) -> Iterator[Any]:
        """Yield the cells of an answer. Numbers have seven significant digits, those of embeddings nine (exact for float32)."""
        if answer is None:
            yield from (None for _ in self.answers)
            return
        if isinstance(answer, np.ndarray):
            yield [float(f"{value:.9g}") for value in answer.tolist()]
            return
        if isinstance(answer, list):
            spans = [span.to_dict() for span in answer]
            yield spans if self.is_json else json.dumps(spans, ensure_ascii=False)
            return
        if isinstance(answer, SpanAnswer):
            yield from (answer.text, answer.start, answer.end, float(f"{answer.score:.7g}"))
            return
        if isinstance(answer, float):
            yield float(f"{answer:.7g}")
            return
        if isinstance(answer, LabelSet):
            yield list(answer.labels) if self.is_json else join_labels(answer.labels)
        else:
            yield answer.label
        yield from (float(f"{answer.probabilities[label]:.7g}") for label in self.labels)

    def _line(self, cells: Sequence[Value]) -> bytes:
        cells = self._safe(cells)
        return ("\t".join(map(str, cells)) + "\n").encode() if self.kind == ".tsv" else _csv_line(cells)

    def _safe(self, cells: Sequence[Value]) -> Sequence[Value]:
        return [f"'{cell}" if _is_formula(cell) else cell for cell in cells] if self.safe_csv else cells


def _json_line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _csv_line(cells: Sequence[Value]) -> bytes:
    text = io.StringIO()
    # The writer quotes cells that contain a character of the line terminator. With "\n", it would not quote a lone "\r".
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return (text.getvalue()[:-2] + "\n").encode()


def _is_formula(cell: Value) -> bool:
    return isinstance(cell, str) and cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell)


def _cell(value: Any) -> str:
    """Return a JSON value as a cell. Strings do not change."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_finite(answer: Reply) -> bool:
    """Return whether an answer can be written. JSON has no NaN and no infinity."""
    if isinstance(answer, np.ndarray):
        return bool(np.isfinite(answer).all())
    if isinstance(answer, list | SpanAnswer):  # the engine raises BackendError for other logits
        return True
    return all(map(math.isfinite, [answer] if isinstance(answer, float) else answer.probabilities.values()))


def choose_columns(
    config: ScoringConfig, header: Sequence[str], task: TaskInfo, head: HeadKind | None = None
) -> Columns:
    """Return the columns of a job.

    Args:
        config: options of the job.
        header: the columns of the input.
        task: the engine's task.
        head: kind of the engine's head; None for a score or one label.

    Raises:
        ConfigError: an option or the output's ending does not suit the head, the number of text columns does not suit the
            task, or TSV cannot contain a label.
        DataError: a text column is missing, a column has the name of an answer, or a plain text file has no pairs.
    """
    embeds, tags = head is HeadKind.EMBEDDING, head is HeadKind.TOKEN_CLASSIFICATION
    sets, answers = head is HeadKind.MULTI_LABEL_CLASSIFICATION, head is HeadKind.QUESTION_ANSWERING
    if config.null_score_diff_threshold is not None and not answers:
        raise ConfigError(
            f"--null_score_diff_threshold is for question answering, and the engine answers {task.name}; leave it out"
        )
    if config.threshold is not None and not sets:
        raise ConfigError(
            f"--threshold is for a multi-label classifier, and the engine answers {task.name}; leave it out"
        )
    path, kind, plain = config.input, config.output_kind, config.input_kind == ".txt"
    if embeds and kind not in (".jsonl", *OF_EMBEDDINGS):
        raise ConfigError(
            f"--output {config.output}: an embedding fits no cell; use {', '.join(OF_EMBEDDINGS)} or .jsonl"
        )
    lists = OF_EMBEDDINGS if embeds else OF_SPANS if tags else ()
    if (kind in OF_EMBEDDINGS and kind not in lists) or (config.prompt_name is not None and not embeds):
        option = "--prompt_name" if config.prompt_name is not None else f"--output {config.output}"
        raise ConfigError(
            f"{option} is for embeddings, and the engine answers {task.name}; use .csv or .jsonl, and no prompt"
        )
    if plain and task.is_pair:
        raise DataError(
            f"{path}: plain text has one text a line, and {task.name} takes pairs; use .csv, .tsv or .jsonl"
        )
    texts = (TEXT_COLUMN,) if plain else _text_columns(path, header, task, config.text_columns, answers)
    labels = "labels" if sets else "label", *(f"probability_{label}" for label in task.labels)
    names = (_NAMES.get(head) if head else None) or (("score",) if task.is_regression else labels)
    if set(names) & set(header):
        names = tuple(f"predicted_{name}" for name in names)
    if clash := set(names) & set(header):
        raise DataError(f"{path}: column {min(clash)!r} exists already, and would be overwritten; rename it")
    if kind == ".tsv" and (label := next((each for each in task.labels if re.search(r"[\t\r\n]", each)), None)):
        raise ConfigError(
            f"label {label!r} of the engine does not fit into TSV, which has no quotes; use .csv or .jsonl"
        )
    return Columns(tuple(header), tuple(texts), names, tuple(task.labels), kind, config.safe_csv)


def _text_columns(
    path: Path, header: Sequence[str], task: TaskInfo, chosen: Sequence[str] | None, answers: bool
) -> Sequence[str]:
    """Return the text columns: the chosen ones, else those on which the engine was trained, else common names."""
    if chosen and len(chosen) != (2 if task.is_pair else 1):
        expected = "pairs: give two columns" if task.is_pair else "single texts: give one column"
        raise ConfigError(f"--text_column_names {' '.join(chosen)}: {task.name} takes {expected}")
    known, glue = task.text_columns, TASKS.get(task.name)
    choices = text_column_names(task.is_pair, glue, chosen or known)
    if known and not chosen and glue:  # GLUE's files and the hub have different names for the same columns
        choices = [known, glue.text_columns, *([glue.hub_columns] if glue.hub_columns else [])]
    if answers and not (chosen or known):
        choices = [QUESTION_COLUMNS, *choices]
    if not header:
        return ()
    trained = ", on which the engine was trained" if known and not chosen else ""
    texts = choose_text_columns(str(path), header, choices, "--text_column_names chooses others", trained)
    is_ambiguous = len({tuple(names) for names in choices if {*names} <= {*header}}) > 1
    if is_ambiguous and not (chosen or known):
        _log.info(
            "columns scored: %s, chosen by name, because the engine does not record its text columns", ", ".join(texts)
        )
    return texts
