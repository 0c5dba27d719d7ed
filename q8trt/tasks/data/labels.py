"""Reading of labels and scores, by one rule for every file format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache

import numpy as np

from q8trt.errors import DataError, nearest
from q8trt.files import Limits, MalformedError, parse_json
from q8trt.tasks.data.opening import shown
from q8trt.tasks.glue import Task

_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,3})?", re.ASCII)
_LARGEST_SCORE = float(np.finfo(np.float32).max)
_LIST = Limits(size=2**20, depth=2, values=100_000)
#: Number of labels that an error lists.
_SHOWN_LABELS = 20


def official_labels(task: Task) -> dict[str, int]:
    """Return spelling of a label in the official TSV -> label id."""
    return {label: index for index, label in enumerate(task.tsv_labels)}


def accepted_labels(task: Task) -> dict[str, int]:
    """Return spelling of a label in a user's file -> label id: names, official spellings, and ids.

    If labels of the task are numbers, ids are not accepted, because label "1" may be id 0.
    """
    spelled = {label: index for index, label in enumerate(task.labels)} | official_labels(task)
    if any(_number(label) is not None for label in task.labels):
        return spelled
    return {str(index): index for index in range(task.num_labels)} | spelled


def label_id(label: object, spellings: Mapping[str, int]) -> int | None:
    """Return the id of a label in a file; None if it matches none of `spellings`.

    A label is a string, a number or a boolean:

    - A string matches a spelling that is equal. If none is, case and surrounding space are ignored, unless two labels differ
      only in these.
    - A number matches each spelling of the same number, as a string or not: ``1``, ``1.0``, ``"1"``, ``" 1.0 "``.
    - A boolean matches only the spellings ``true`` and ``false``, never a number.
    - Other values (a list, a date, NaN, None) are not labels.
    """
    if isinstance(label, str) and label in spellings:
        return spellings[label]
    key = _key(label)
    return None if key is None else _by_key(tuple(spellings.items())).get(key)


@lru_cache(maxsize=16)
def _by_key(spellings: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Return key -> id, without keys that two labels share."""
    ids: dict[str, set[int]] = {}
    for spelling, index in spellings:
        ids.setdefault(_key(spelling) or "", set()).add(index)
    return {key: next(iter(indices)) for key, indices in ids.items() if len(indices) == 1}


def _key(label: object) -> str | None:
    """Return the normalized form of a label, which is equal for its spellings; None for a value that is not a label."""
    number = None if isinstance(label, bool) else _number(label)
    if number is not None:
        return str(int(number)) if number == int(number) else str(number.normalize())
    return str(label).strip().casefold() if isinstance(label, str | bool) else None


def _number(value: object) -> Decimal | None:
    """Return the finite number that a value or its text represents, or None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    if isinstance(value, str):
        value = value.strip()
        return Decimal(value) if _NUMBER.fullmatch(value) else None
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None


def check_label(label: object, task: Task, where: str, spellings: Mapping[str, int] | None = None) -> int:
    """Return the id of a label; `spellings` is None for those of the official TSV.

    Raises:
        DataError: the label is not among the spellings; the message begins with `where`.
    """
    spellings = official_labels(task) if spellings is None else spellings
    index = label_id(label, spellings)
    if index is None:
        raise DataError(
            f"{where}: label {shown(label)}, expected one of {_listed(spellings)}{_suggestion(label, spellings)}"
        )
    return index


def check_labels(labels: object, task: Task, where: str, spellings: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """Return the ids of the labels of one row; `check_label` reads each of them.

    - Each item of a list is a label.
    - A string is one label, labels separated by commas, or a JSON list, whose labels may contain commas. An empty string has
      no labels.
    - A number or a boolean is one label.

    Raises:
        DataError: a label is not among the spellings, or is repeated; the message begins with `where`.
    """
    spellings = official_labels(task) if spellings is None else spellings
    ids = [check_label(label, task, where, spellings) for label in _items(labels, spellings, where)]
    twice = next((index for number, index in enumerate(ids) if index in ids[:number]), None)
    if twice is not None:
        raise DataError(f"{where}: label {shown(task.labels[twice])} appears twice; give each label of a row once")
    return tuple(ids)


def join_labels(labels: Sequence[str]) -> str:
    """Return `labels` as text that `check_labels` reads: separated by commas, or a JSON list if a label needs it."""
    plain = all(label == label.strip() and "," not in label and not label.startswith("[") for label in labels)
    return ",".join(labels) if plain else json.dumps(list(labels), ensure_ascii=False)


def _items(labels: object, spellings: Mapping[str, int], where: str) -> Sequence[object]:
    if isinstance(labels, list | tuple):
        return labels
    if not isinstance(labels, str) or label_id(labels, spellings) is not None:
        return [labels]
    if not labels.strip():
        return []
    if not labels.lstrip().startswith("["):
        return labels.split(",")
    try:
        items = parse_json(labels, _LIST)
    except MalformedError as error:
        raise DataError(
            f"{where}: labels {shown(labels)} are not a JSON list ({error}); separate them by commas"
        ) from None
    return items if isinstance(items, list) else [labels]


def _suggestion(label: object, spellings: Iterable[str]) -> str:
    """Return a remark with the spelling that is nearest to a misspelled name; "" for numbers, which all look alike."""
    return "" if _number(label) is not None else nearest(str(label), spellings)


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    if any("," in name for name in listed):
        listed = list(map(repr, listed))
    more = f" and {len(listed) - _SHOWN_LABELS} more" if len(listed) > _SHOWN_LABELS else ""
    return ", ".join(listed[:_SHOWN_LABELS]) + more


def check_score(value: object, task: Task, where: str) -> float:
    """Return `value`, a number or the text of a number, as a score of a regression task.

    Raises:
        DataError: it is not a number, not finite as float32, or outside the task's range; the message begins with `where`.
    """
    number = _number(value)
    try:
        score = math.nan if number is None else float(number)
    except OverflowError:
        score = math.nan
    low, high = task.score_range or (-_LARGEST_SCORE, _LARGEST_SCORE)
    if not low <= score <= high:
        expected = (
            f"a number from {low:g} to {high:g}"
            if task.score_range
            else "a finite number (or name the labels: --label_list)"
        )
        raise DataError(f"{where}: score {shown(value)}, expected {expected}")
    return score
