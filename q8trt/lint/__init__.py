"""The linter: it forecasts, from an ONNX file alone, what TensorRT will do with the graph, block by block.

    report = lint("model.onnx", LintConfig(max_shapes=(32, 128)))
    report.forecast.int8_gemms, report.worst

It finds embeddings, layers and head by structure, so it also reads what other tools export. Nothing here runs the model or
loads TensorRT.
"""

from __future__ import annotations

from pathlib import Path

from q8trt.lint.report import (
    FUSED,
    NOT_FUSED,
    Block,
    Finding,
    Forecast,
    Item,
    LintConfig,
    LintReport,
    Part,
    Place,
    Site,
    SiteKind,
)  # fmt: skip
from q8trt.lint.rules import LEVELS, Level

__all__ = [
    "FUSED",
    "LEVELS",
    "NOT_FUSED",
    "Block",
    "Finding",
    "Forecast",
    "Item",
    "Level",
    "LintConfig",
    "LintReport",
    "Part",
    "Place",
    "Site",
    "SiteKind",
    "forecast_sites",
    "graph",
    "lint",
    "report",
    "structure",
]


def lint(path: str | Path, config: LintConfig | None = None) -> LintReport:
    """Judge an ONNX file.

    Args:
        path: the file; weights in external data are not read.
        config: facts that the file does not hold.

    Raises:
        EngineError: the file is missing, is not an ONNX file, is truncated or malformed.
    """
    from q8trt.lint.linter import check

    return check(path, config or LintConfig())


def forecast_sites(path: str | Path, config: LintConfig | None = None) -> tuple[Site, ...]:
    """Return each embedding, matrix product, attention and residual Add of an ONNX file with the forecast for it.

    Arguments and errors as `lint`.
    """
    from q8trt.lint.linter import sites

    return sites(path, config or LintConfig())
