"""A check of a GPU as JSON, as one HTML page and as a table on the terminal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.gpu_check.bench import Bench
from q8trt.gpu_check.config import CheckConfig
from q8trt.gpu_check.journal import RESULTS, CheckResult, Journal
from q8trt.reporting.html import render
from q8trt.reporting.report import page_sections
from q8trt.reporting.table import Column, Phrase, Table, Tone, words
from q8trt.reporting.terminal import print_table, say

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
STEM = "gpu-check"
_TONES: dict[str, Tone] = {"passed": "good", "failed": "bad", "skipped": "warning", "measured": "plain"}


def to_dict(journal: Journal, bench: Bench, config: CheckConfig, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the check as JSON: ``checks`` are the steps, and ``reports`` has a benchmark report for each model.

    A report follows docs/reference/benchmark-schema.md. ``passed`` is True if all steps are done and none failed; ``finished``
    is False in the file of a check that is still running or was stopped.
    """
    return {
        "schema": SCHEMA,
        "passed": journal.finished and not journal.failed,
        "finished": journal.finished,
        "backend": bench.title,
        "device": bench.device,
        "counts": {result: sum(check.result == result for check in journal.checks) for result in RESULTS},
        "checks": [asdict(check) for check in journal.checks],
        "reports": {name: report.to_dict() for name, report in journal.reports.items()},
        "config": asdict(config),
        "provenance": provenance,
    }


def summary(journal: Journal) -> str:
    """Return ``"41 passed, 1 failed, 24 measured, 2 skipped"``, with ``"; not finished"`` if steps are still missing."""
    counts = (f"{sum(check.result == result for check in journal.checks)} {result}" for result in RESULTS)
    return ", ".join(counts) + ("" if journal.finished else "; not finished")


def html(journal: Journal, bench: Bench, provenance: dict[str, Any]) -> str:
    """Return one self-contained page: the table of checks, then each model's plots and tables."""
    return render(
        "gpu_check",
        title=f"GPU check: {bench.title} on {bench.device}",
        summary=summary(journal),
        failures=[Phrase(f"{each.check}: {each.figure}", "bad") for each in journal.checks if each.result == "failed"],
        checks=check_table(journal),
        tables=[],
        reports=[page_sections(report) for report in journal.reports.values()],
        provenance={"backend": bench.title, "device": bench.device, **provenance},
    )


def check_table(journal: Journal) -> Table:
    """Return a line per step: check, result, figure and, if there is room, seconds."""
    columns = (
        words("check", wraps=True), words("result"), words("figure", wraps=True), Column("seconds", format=".1f", rank=1)
    )  # fmt: skip
    rows = [
        (each.check, Phrase(each.result, _TONES[each.result]), each.figure, each.seconds) for each in journal.checks
    ]
    return Table(columns, tuple(rows))


def write(
    folder: Path, journal: Journal, bench: Bench, config: CheckConfig, provenance: dict[str, Any]
) -> tuple[Path, Path]:
    """Write ``gpu-check.json`` and ``gpu-check.html``, each whole or not at all, and return the two paths.

    Raises:
        OSError: the folder cannot be written.
    """
    paths = folder / f"{STEM}.json", folder / f"{STEM}.html"
    files.write_json(paths[0], to_dict(journal, bench, config, provenance))
    files.write_text(paths[1], html(journal, bench, provenance))
    return paths


def line(check: CheckResult) -> str:
    """Return the line of a finished step: ``"passed    minilm: build FP32: plan 87.2 MiB in 4.1 s"``."""
    return f"{check.result:9} {check.check}: {check.figure}"


def print_checks(journal: Journal, console: Console) -> None:
    """Print the table of checks and the number of each result."""
    print_table(console, check_table(journal))
    say(console, summary(journal), "bold red" if journal.failed else "bold")
