"""The record of a candidate that calibration tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        settings: the calibrator of most sites, and what is smoothed, such as "mse, smoothquant 0.5".
        drift: mean squared difference of the answers from those in floating point, over the variance of the latter: 0 where
            they are the same, 1 where they are as far off as one answer for all rows.
    """

    settings: str
    drift: float


def trial_lines(trials: Sequence[Trial]) -> list[str]:
    """Return a table of candidates as lines, the one that was kept marked; none where nothing was chosen."""
    if not trials:
        return []
    best = min(trials, key=lambda trial: trial.drift)
    lines = [f"  {trial.drift:8.4f}  {trial.settings}{'  <- kept' if trial is best else ''}" for trial in trials]
    return ["calibration by drift from FP32 (0: none, 1: as one answer for all rows), on held-out rows:", *lines]
