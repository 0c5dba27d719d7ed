"""The facts of an export that an engine's manifest keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassReport:
    """A graph pass: its `name` and the number of places that it `changed`."""

    name: str
    changed: int


@dataclass(frozen=True)
class KeptOp:
    """An operation left in FP32: the node's `name`, its `op_type`, and the `reason`."""

    name: str
    op_type: str
    reason: str
