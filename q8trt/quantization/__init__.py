"""Quantization of an encoder: its sites, recipes, and TensorQuantizers with calibrated ranges.

Cheap to import: `architectures`, `sites` (their named tensors), `recipe`, `calibrators` (names), `precision`, `target`,
`trial`, `libraries`. The others need torch: `insertion` puts quantizers in, `calibration` sets their ranges, `choice` tries a
recipe's alternatives, `float_sites` leaves operations in floating point, `drift` is what both measure,
`spreads` compares the channels of a site, `ranges` trains ranges.
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
