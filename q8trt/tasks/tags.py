"""Tags of words: the schemes of their names, and seqeval's metrics of entities.

The schemes are IOB2 (B-PER begins an entity, I-PER continues it, O is outside), BIOES and BILOU (S or U is an entity of one
word, E or L ends one), and plain names, such as parts of speech. Metrics: Tjong Kim Sang and De Meulder 2003; seqeval's
default mode counts as the script ``conlleval`` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from q8trt.errors import DataError
from q8trt.hardware.packages import install_module

OUTSIDE = "O"
#: Letter before the name of an entity -> whether it always begins an entity.
_BEGINS = {"B": True, "S": True, "U": True, "I": False, "E": False, "L": False, "M": False}
Tags = Sequence[Sequence[str]]


def parse_tag(tag: str) -> tuple[bool, str]:
    """Return whether a tag begins an entity, and the entity's name; a tag without a prefix is the name and begins none."""
    begins = _BEGINS.get(tag[:1]) if tag[1:2] == "-" else None
    return (False, tag) if begins is None else (begins, tag[2:])


def has_entities(labels: Sequence[str]) -> bool:
    """Return whether `labels` are tags of entities, such as B-PER and I-PER, and not plain names."""
    names = [label for label in labels if label != OUTSIDE]
    return bool(names) and all(parse_tag(label)[1] != label for label in names)


def entity_metric(name: str) -> Callable[[Tags, Tags], float]:
    """Return a function for seqeval's `name` (f1_score, precision_score or recall_score) of entities, over all rows.

    The function raises DataError if seqeval is not installed.
    """

    def compute(predictions: Tags, references: Tags) -> float:
        try:
            metrics = importlib.import_module("seqeval.metrics")
        except ModuleNotFoundError as error:
            raise DataError(f"entity F1 needs seqeval: {install_module('seqeval')}") from error
        return float(getattr(metrics, name)(references, predictions, zero_division=0))

    return compute


def token_accuracy(predictions: Tags, references: Tags) -> float:
    """Return the share of words whose tag is correct."""
    pairs = [pair for rows in zip(predictions, references, strict=True) for pair in zip(*rows, strict=True)]
    return sum(ours == theirs for ours, theirs in pairs) / max(len(pairs), 1)
