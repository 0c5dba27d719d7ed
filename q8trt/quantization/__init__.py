"""Quantization of an encoder: its sites, recipes, and TensorQuantizers with calibrated ranges.

Cheap to import: `architectures` is the table of architectures, `sites` their named tensors, `recipe` says which of them are
quantized and how, `calibrators` the ways to choose a range, `precision` the number formats. The others need torch:
`insertion` puts quantizers in, `calibration` sets their ranges, `smoothquant` and `percentile_search` are parts of it,
`ranges` trains them, `migration` reads checkpoints of pytorch-quantization, `summary` describes a recipe on a model.
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
    "weights",
]
