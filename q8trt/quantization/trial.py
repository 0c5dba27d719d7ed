"""The records of what calibration tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        settings: the calibrator of most sites and the smoothing, such as "mse, smoothquant 0.5".
        drift: mean squared difference of the answers from those in floating point, divided by the variance of the latter. 0
            means equal answers. 1 is the drift of a constant answer for all rows.
    """

    settings: str
    drift: float


@dataclass(frozen=True)
class InFloat:
    """The operations that calibration left in floating point.

    Attributes:
        operations: keys of the sites of each operation, the most harmful operation first.
        drift: as in `Trial`, with these operations in floating point.
    """

    operations: tuple[tuple[str, ...], ...]
    drift: float

    @property
    def sites(self) -> tuple[str, ...]:
        """Keys of all the sites."""
        return tuple(key for operation in self.operations for key in operation)


def trial_lines(trials: Sequence[Trial], in_float: InFloat | None = None) -> list[str]:
    """Return a table of the candidates as lines, with a mark at the chosen one, and the operations in floating point.

    The table is empty if there was no choice.
    """
    if not trials:
        return []
    best = min(trials, key=lambda trial: trial.drift)
    digits = _digits([trial.drift for trial in trials] + ([in_float.drift] if in_float else []))
    lines = [
        f"  {trial.drift:{digits + 4}.{digits}f}  {trial.settings}{'  <- kept' if trial is best else ''}"
        for trial in trials
    ]
    if in_float:
        lines.append(
            f"  {in_float.drift:{digits + 4}.{digits}f}  and in floating point: {', '.join(in_float.sites)}  <- kept"
        )
    return ["calibration by drift from FP32 (0: none, 1: as one answer for all rows), on held-out rows:", *lines]


def _digits(drifts: Sequence[float]) -> int:
    """Return the decimals that tell different drifts apart, from 4 to 9."""
    different = set(drifts)
    return next((n for n in range(4, 9) if len({f"{drift:.{n}f}" for drift in different}) == len(different)), 9)
