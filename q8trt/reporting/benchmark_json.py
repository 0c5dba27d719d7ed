"""The files that a benchmark leaves, and the JSON that docs/benchmark-schema.md describes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.reporting.benchmark import Report, Row
from q8trt.reporting.gate import Gate
from q8trt.reporting.notes import all_notes
from q8trt.reporting.verdict import verdict


def report_dict(report: Report, gate: Gate | None = None) -> dict[str, Any]:
    """Return the report with its verdict and, where one was set, its gate.

    Units are in the keys; metrics are fractions, ``*_ratio`` is below 1 where a row is faster or smaller.
    """
    return {
        "schema": report.schema,
        "title": report.title,
        "task": report.task,
        "split": report.split,
        "data_source": report.data_label,
        "is_sample": report.is_sample,
        "rows_evaluated": report.rows_evaluated,
        "data_fingerprint": report.data_fingerprint,
        "main_metric": report.main_metric,
        "rows": [_row_dict(report, row) for row in report.rows],
        "gpus": [asdict(gpu) for gpu in report.gpus],
        "what_is_timed": report.what_is_timed,
        "notes": all_notes(report),
        "provenance": report.provenance,
        "verdict": [phrase.text for phrase in verdict(report)],
        "gate": _gate_dict(report, gate) if gate else None,
    }


def _row_dict(report: Report, row: Row) -> dict[str, Any]:
    baseline = report.baseline(row)
    against = None
    if baseline:
        ratio = report.ratio(row, baseline)
        against = {
            "baseline": baseline.name,
            "score_delta_x100": report.score_delta_x100(row),
            "median_latency_ratio": ratio.latency,
            "onnx_size_ratio": ratio.onnx_size,
            "plan_size_ratio": ratio.plan_size,
        }
    fields = {key: value for key, value in asdict(row).items() if key not in ("name", "place")}
    return {
        "name": row.name,
        "label": row.label,
        **fields,
        "latencies": [{**asdict(each), "warnings": tuple(map(str, each.warnings))} for each in row.latencies],
        "lengths": {**asdict(row.lengths), "ratio": row.lengths.ratio} if row.lengths else None,
        "score_x100": report.score_x100(row),
        "against": against,
    }


def _gate_dict(report: Report, gate: Gate) -> dict[str, Any]:
    failures = gate.failures(report)
    return {
        "max_drop_points": gate.max_drop,
        "min_speedup_ratio": gate.min_speedup,
        "passed": not failures,
        "failures": failures,
    }


def check_files(stem: Path) -> None:
    """Raise ConfigError where a report would replace files that are not an earlier report."""
    others = [Path(f"{stem}.md"), Path(f"{stem}.html")]
    keys, hint = ("schema", "rows", "main_metric"), "choose another --name or --output_dir"
    files.check_report(Path(f"{stem}.json"), others, keys=keys, option="--output_dir", hint=hint)


def write_report(
    folder: str | Path, report: Report, name: str = "benchmark", gate: Gate | None = None
) -> tuple[Path, Path, Path]:
    """Write ``<name>.json``, ``.md`` and ``.html`` into `folder`, each whole or not at all; returns the three paths.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a figure is NaN or infinite, which JSON cannot hold; nothing is written.
    """
    data = report_dict(report, gate)
    json.dumps(data, allow_nan=False)
    texts = report.to_markdown(), report.to_html()
    paths = Path(folder) / f"{name}.json", Path(folder) / f"{name}.md", Path(folder) / f"{name}.html"
    files.write_json(paths[0], data)
    for path, text in zip(paths[1:], texts, strict=True):
        files.write_text(path, text)
    return paths
