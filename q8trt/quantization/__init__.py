"""Quantization of an encoder: its sites, recipes, and TensorQuantizers with calibrated ranges.

Cheap to import: `architectures`, `sites` (their named tensors), `recipe`, `calibrators` (names), `precision`, `target`,
`libraries`. The others need torch: `insertion` puts quantizers in, `calibration` sets their ranges, `ranges` trains them.
"""

__all__ = [
    "architectures",
    "calibration",
    "calibrators",
    "insertion",
    "libraries",
    "migration",
    "modules",
    "precision",
    "ranges",
    "recipe",
    "sites",
    "summary",
    "target",
    "weights",
]
