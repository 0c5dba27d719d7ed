"""The facts of an export that are stored in an engine's manifest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassReport:
    """A graph pass: its `name` and the number of places that it `changed`; for `to_fp16` the number of Casts added."""

    name: str
    changed: int


@dataclass(frozen=True)
class KeptOp:
    """An operation that stays in FP32: the node's `name`, its `op_type`, and the `reason`."""

    name: str
    op_type: str
    reason: str
