"""A check of a GPU as JSON, as one HTML page and as a table on the terminal."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from q8trt import files
from q8trt.gpu_check.bench import Bench
from q8trt.gpu_check.config import CheckConfig
from q8trt.gpu_check.journal import RESULTS, Check, Journal
from q8trt.reporting import report_dict
from q8trt.reporting.html import content, page, provenance_section, section, table

SCHEMA = 1
STEM = "gpu-check"
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow", "measured": ""}


def to_dict(journal: Journal, bench: Bench, config: CheckConfig, provenance: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready. ``checks`` are the steps in order, ``reports`` follow docs/benchmark-schema.md, one a model.

    ``passed`` is whether all steps were gone through and none failed; ``finished`` is False in the file of a check that is
    still under way or was stopped.
    """
    return {
        "schema": SCHEMA,
        "passed": journal.finished and not journal.failed,
        "finished": journal.finished,
        "backend": bench.title,
        "device": bench.device,
        "counts": {result: sum(check.result == result for check in journal.checks) for result in RESULTS},
        "checks": journal.to_list(),
        "reports": {name: report_dict(report) for name, report in journal.reports.items()},
        "config": asdict(config),
        "provenance": provenance,
    }


def summary(journal: Journal) -> str:
    """``"41 passed, 1 failed, 24 measured, 2 skipped"``; says so where steps are still missing."""
    counts = (f"{sum(check.result == result for check in journal.checks)} {result}" for result in RESULTS)
    return ", ".join(counts) + ("" if journal.finished else "; not finished")


def html(journal: Journal, bench: Bench, provenance: dict[str, Any]) -> str:
    """One self-contained page: the table of checks, then each model's plots and tables."""
    title = f"GPU check: {bench.title} on {bench.device}"
    checks = [[each.check, each.result, each.figure, f"{each.seconds:.1f}"] for each in journal.checks]
    head = f"<header><h1>{escape(title)}</h1>\n<p>{escape(summary(journal))}</p></header>"
    failures = [check for check in journal.checks if check.result == "failed"]
    body = [head]
    if failures:
        items = "".join(f"<li class='slower'>{escape(each.check)}: {escape(each.figure)}</li>" for each in failures)
        body.append(section("Failed", f"<ul class='verdict'>{items}</ul>"))
    listed = table(["check", "result", "figure", "seconds"], checks, 3)
    body.append(section("Checks", f"<div class='prose'>{listed}</div>"))
    for report in journal.reports.values():
        body += content(report)
    body.append(provenance_section({"backend": bench.title, "device": bench.device, **provenance}))
    return page(title, body)


def write(
    folder: Path, journal: Journal, bench: Bench, config: CheckConfig, provenance: dict[str, Any]
) -> tuple[Path, Path]:
    """Write ``gpu-check.json`` and ``gpu-check.html``, each whole or not at all; returns the two paths.

    Raises:
        OSError: the folder cannot be written.
    """
    paths = folder / f"{STEM}.json", folder / f"{STEM}.html"
    files.write_json(paths[0], to_dict(journal, bench, config, provenance))
    files.write_text(paths[1], html(journal, bench, provenance))
    return paths


def line(check: Check) -> str:
    """One step as it ends: ``"passed    minilm: build FP32: plan 87.2 MiB in 4.1 s"``."""
    return f"{check.result:9} {check.check}: {check.figure}"


def print_table(journal: Journal, console: Console) -> None:
    """Print the table (check, result, figure) and how many there are of each result."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in ("check", "result", "figure"):
        shown.add_column(header, overflow="fold", no_wrap=header == "result")
    for check in journal.checks:
        shown.add_row(Text(check.check), Text(check.result, style=_STYLES[check.result]), Text(check.figure))
    console.print(shown)
    console.print(Text(summary(journal), style="bold red" if journal.failed else "bold"))
