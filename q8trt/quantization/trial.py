"""Records of the candidates that calibration measured, and the lines that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """A measured candidate.

    Attributes:
        settings: the calibrator of most sites and the smoothing, such as "mse, smoothquant 0.5".
        drift: mean squared difference of the answers from those in floating point, divided by the variance of the latter. 0
            means equal answers. Their mean, as the answer to all rows, has the drift 1.
    """

    settings: str
    drift: float


@dataclass(frozen=True)
class InFloat:
    """The operations that calibration left in floating point.

    Attributes:
        operations: keys of the sites of each operation, with the most harmful operation first.
        drift: the drift with these operations in floating point, see `Trial`.
    """

    operations: tuple[tuple[str, ...], ...]
    drift: float

    @property
    def sites(self) -> tuple[str, ...]:
        """Keys of the sites of all operations."""
        return tuple(key for operation in self.operations for key in operation)


def trial_lines(trials: Sequence[Trial], in_float: InFloat | None = None) -> list[str]:
    """Return the candidates, with a mark at the chosen one, and the operations in floating point, as lines of a table.

    Without candidates, there are no lines.
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
    return ["calibration by drift from FP32 on held-out rows (0: none, 1: as one answer for all rows):", *lines]


def _digits(drifts: Sequence[float]) -> int:
    """Return the number of decimals, from 4 to 9, that distinguishes different drifts."""
    different = set(drifts)
    return next((n for n in range(4, 9) if len({f"{drift:.{n}f}" for drift in different}) == len(different)), 9)
