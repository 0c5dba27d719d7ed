"""The files that a benchmark leaves, and the JSON that docs/benchmark-schema.md describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.reporting.html import html
from q8trt.reporting.markdown import markdown
from q8trt.reporting.report import Report
from q8trt.reporting.verdict import Gate, verdict


def report_dict(report: Report, gate: Gate | None = None) -> dict[str, Any]:
    """The report with its verdict and, where one was set, its gate; JSON-ready, units in the keys."""
    judged: dict[str, Any] | None = None
    if gate:
        failures = gate.failures(report)
        judged = {"max_drop_points": gate.max_drop, "min_speedup_ratio": gate.min_speedup}
        judged |= {"passed": not failures, "failures": failures}
    return {**report.to_dict(), "verdict": verdict(report), "gate": judged}


def write_report(
    folder: str | Path, report: Report, name: str = "benchmark", gate: Gate | None = None
) -> tuple[Path, Path, Path]:
    """Write ``<name>.json``, ``.md`` and ``.html`` into `folder`, each whole or not at all; returns the three paths.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a figure is NaN or infinite, which JSON has no word for; nothing is written.
    """
    data = report_dict(report, gate)
    json.dumps(data, allow_nan=False)
    texts = markdown(report), html(report)
    paths = Path(folder) / f"{name}.json", Path(folder) / f"{name}.md", Path(folder) / f"{name}.html"
    files.write_json(paths[0], data)
    for path, text in zip(paths[1:], texts, strict=True):
        files.write_text(path, text)
    return paths
