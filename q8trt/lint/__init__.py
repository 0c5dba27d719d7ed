"""The linter: what TensorRT will do with an ONNX graph, block by block, told from the file alone.

    report = lint("model.onnx", LintConfig(max_shapes=(32, 128)))
    report.forecast.int8_gemms, report.worst

It finds embeddings, layers and head by structure, so it also reads what other tools export. Nothing here runs the model or
loads TensorRT.
"""

from __future__ import annotations

from pathlib import Path

from q8trt.lint.report import LEVELS, Block, Finding, Forecast, Item, LintConfig, LintReport

__all__ = ["LEVELS", "Block", "Finding", "Forecast", "Item", "LintConfig", "LintReport", "lint"]


def lint(path: str | Path, config: LintConfig | None = None) -> LintReport:
    """Judge an ONNX file.

    Args:
        path: the file; weights in external data are not read.
        config: what else is known; default: nothing.

    Raises:
        EngineError: the file is missing, is no ONNX file, is truncated or malformed.
    """
    from q8trt.lint.check import check

    return check(path, config or LintConfig())
