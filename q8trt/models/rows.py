"""Checks of tokenized rows against the tables of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from q8trt.errors import DataError
from q8trt.models.config import positions, takes_token_types

if TYPE_CHECKING:
    from q8trt.tasks.data import Features


def check_rows(rows: Features, config: Any) -> None:
    """Raise if a row has an id beyond a table of the model.

    Raises:
        DataError: a token id, a token type or a length that the model has no row for.
    """
    types = rows.token_type_ids if takes_token_types(config) else None
    for kind, lists, size in (
        ("token id", rows.input_ids, config.vocab_size),
        ("token type", types or (), getattr(config, "type_vocab_size", 1)),
    ):
        lowest, highest = _range(lists)
        if lowest < 0 or highest >= size:
            raise DataError(
                f"{rows.source}: {kind} {lowest if lowest < 0 else highest}, but the model's table has {size} rows (0 to "
                f"{size - 1}); the rows were made for another model"
            )
    longest = max((len(row) for row in rows.input_ids), default=0)
    if longest > positions(config):
        raise DataError(
            f"{rows.source}: {longest} tokens in a row, but the model has {positions(config)} positions; lower "
            "--max_seq_length"
        )


def _range(lists: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the lowest and the highest number; 0 and 0 where there is none."""
    filled = [each for each in lists if len(each)]
    return min(map(min, filled), default=0), max(map(max, filled), default=0)
