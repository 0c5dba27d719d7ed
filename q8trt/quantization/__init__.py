"""Quantization of an encoder: its sites, recipes, and TensorQuantizers with calibrated ranges.

`architectures`, `sites` (their named tensors), `recipe`, `calibrators`, `precision`, `target`, `trial` and `libraries` do not
import torch. The others do: `insertion` inserts quantizers, `calibration` sets their ranges, `choice` tries a recipe's
alternatives, `float_sites` leaves operations in floating point, `drift` computes the measure of both, `spreads` compares the
channels of a site, `ranges` trains ranges.
"""

__all__ = [
    "architectures",
    "calibration",
    "calibrators",
    "choice",
    "drift",
    "float_sites",
    "insertion",
    "libraries",
    "migration",
    "modules",
    "precision",
    "ranges",
    "recipe",
    "sites",
    "spreads",
    "summary",
    "target",
    "trial",
    "weights",
]
