"""The linter: it reads an ONNX file and forecasts what TensorRT does with each block of the graph.

    report = lint("model.onnx", LintConfig(max_shapes=(32, 128)))
    report.forecast.int8_gemms, report.worst

It recognizes embeddings, layers and head by structure, so it also works on files from other tools. It does not run the model
and does not load TensorRT.
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
        path: the file. Large weights in external data are not read, but their files must exist.
        config: facts that the file does not contain; default: `LintConfig()`.

    Raises:
        EngineError: the file is missing, truncated or malformed, is not an ONNX file, has too many nodes, or its external data
            are missing.
    """
    from q8trt.lint.linter import check

    return check(path, config or LintConfig())


def forecast_sites(path: str | Path, config: LintConfig | None = None) -> tuple[Site, ...]:
    """Return each embedding, matrix product, attention and residual Add of an ONNX file with the forecast for it.

    The arguments and errors are those of `lint`.
    """
    from q8trt.lint.linter import sites

    return sites(path, config or LintConfig())
