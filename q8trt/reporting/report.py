"""The report of a benchmark: JSON (docs/reference/benchmark-schema.md), Markdown, an HTML page, and the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.console.names import markdown_text
from q8trt.reporting.benchmark_plots import PlacePlots, plots
from q8trt.reporting.benchmark_tables import (
    SUMMARY_SHAPES,
    detail_tables,
    document_summary,
    latencies,
    lengths,
    parts,
    summary,
)
from q8trt.reporting.gate import Gate, GateResult
from q8trt.reporting.html import render
from q8trt.reporting.markdown import markdown_list, markdown_section, markdown_table
from q8trt.reporting.measurements import Measurements, Row
from q8trt.reporting.notes import all_notes, gpu_note
from q8trt.reporting.table import PLACE, Phrase, Table
from q8trt.reporting.terminal import print_facts, print_lines, print_table, say
from q8trt.reporting.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Report(Measurements):
    """The figures of a benchmark and their renderers."""

    @property
    def all_notes(self) -> list[str]:
        """`notes` and those that follow from the rows."""
        return all_notes(self)

    def to_dict(self, gate: Gate | None = None) -> dict[str, Any]:
        """Return the content of ``benchmark.json``, with the verdict and, if one was set, the gate.

        Units are in the keys. Metrics are fractions, and ``*_ratio`` is below 1 if a row is faster or smaller.
        """
        return {
            "schema": self.schema,
            "title": self.title,
            "head": asdict(self.head),
            "task": self.task,
            "split": self.split,
            "data_source": self.data_label,
            "is_sample": self.is_sample,
            "rows_evaluated": self.rows_evaluated,
            "questions_evaluated": self.questions_evaluated,
            "data_fingerprint": self.data_fingerprint,
            "main_metric": self.main_metric,
            "rows": [_row_dict(self, row) for row in self.rows],
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "what_is_timed": self.what_is_timed,
            "notes": self.all_notes,
            "provenance": self.provenance,
            "verdict": [phrase.text for phrase in verdict(self)],
            "gate": _gate_dict(self, gate) if gate else None,
        }

    def to_markdown(self, gate: Gate | None = None) -> str:
        """Return the report as Markdown: gate, head, verdict, figures, notes, every metric and latency, provenance."""
        lines = [f"# {markdown_text(self.heading)}", ""]
        if gate:
            result = GateResult.of(gate, self)
            lines += [
                f"> **{result.judgment.text}** (required: {markdown_text(result.requirements)})",
                *(f"> - {markdown_text(each)}" for each in result.failures),
                "",
            ]
        lines += [*markdown_list(dict(self.head.facts())), ""]
        lines += [*(f"- {markdown_text(phrase.text)}" for phrase in verdict(self)), ""]
        lines += markdown_table(document_summary(self))
        notes = [*(f"Note: {note}" for note in self.all_notes), *map(gpu_note, self.gpus)]
        lines += [f"- {markdown_text(note)}" for note in notes] + ([""] if notes else [])
        lines += [line for table in detail_tables(self) for line in markdown_section(table)]
        return "\n".join([*lines, "## Provenance", "", *markdown_list(self.origin)]) + "\n"

    def to_html(self, gate: Gate | None = None) -> str:
        """Return the report as one HTML page with plots, which needs no network and no script."""
        page = page_sections(self, gate)
        return render("benchmark", title=self.heading, page=page, provenance=self.origin)


def _row_dict(report: Report, row: Row) -> dict[str, Any]:
    fields = {key: value for key, value in asdict(row).items() if key not in ("name", "place")}
    return {
        "name": row.name,
        "label": row.label,
        **fields,
        "is_widened": row.is_widened,
        "latencies": [{**asdict(each), "warnings": tuple(map(str, each.warnings))} for each in row.latencies],
        "lengths": {**asdict(row.lengths), "ratio": row.lengths.ratio} if row.lengths else None,
        "score_x100": report.score_x100(row),
        "against": _against(report, row, report.baseline(row)),
        "against_fp16": _against(report, row, report.fp16_row(row)) if row.precision.is_quantized else None,
    }


def _against(report: Report, row: Row, baseline: Row | None) -> dict[str, Any] | None:
    if baseline is None:
        return None
    ratio = report.ratio(row, baseline)
    return {
        "baseline": baseline.name,
        "score_delta_x100": report.score_delta_x100(row, baseline),
        "median_latency_ratio": ratio.latency,
        "onnx_size_ratio": ratio.onnx_size,
        "plan_size_ratio": ratio.plan_size,
    }


def _gate_dict(report: Report, gate: Gate) -> dict[str, Any]:
    result = GateResult.of(gate, report)
    return {
        "max_drop_points": gate.max_drop,
        "min_speedup_ratio": gate.min_speedup,
        "passed": result.passed,
        "failures": list(result.failures),
    }


@dataclass(frozen=True)
class PageSections:
    """The content of a report's page as the templates read it, without provenance."""

    title: str
    gate: GateResult | None
    facts: list[tuple[str, str]]
    verdict: list[Phrase]
    summary: Table
    places: list[PlacePlots]
    notes: list[str]
    tables: Sequence[Table]


def page_sections(report: Report, gate: Gate | None = None) -> PageSections:
    """Return the content of the page of a report."""
    places = [plots(report, each) for each in report.places]
    return PageSections(
        title=report.heading,
        gate=GateResult.of(gate, report) if gate else None,
        facts=report.head.facts(),
        verdict=verdict(report),
        summary=summary(report, with_times=len(report.shapes) <= SUMMARY_SHAPES).without_constant(PLACE),
        places=[each for each in places if each.figures or each.not_drawn],
        notes=[*report.all_notes, *map(gpu_note, report.gpus)],
        tables=[table.without_constant(PLACE) for table in detail_tables(report)],
    )


def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """Print head, figures, notes and the verdict, in the widest layout that fits `console` without cutting a number.

    `verbose` also prints the definitions of the columns.
    """
    say(console, report.heading, "bold")
    print_facts(console, report.head.facts())
    say(console)
    if not print_table(console, summary(report), optional=True, legend=verbose):
        print_table(console, summary(report, with_times=False), legend=verbose)
    for table in (latencies(report), parts(report), lengths(report)):
        if table.rows:
            print_table(console, table, optional=True, legend=verbose)
    notes = [Phrase(f"Note: {note}", "warning") for note in report.all_notes]
    print_lines(console, [*map(gpu_note, report.gpus), *notes])
    if sentences := verdict(report):
        say(console)
        say(console, "Verdict", "bold")
        print_lines(console, sentences)


def check_files(stem: Path) -> None:
    """Raise ConfigError if a report would replace files that are not an earlier report."""
    others = [Path(f"{stem}.md"), Path(f"{stem}.html")]
    keys, hint = ("schema", "rows", "main_metric"), "choose another --name or --output_dir"
    files.check_report(Path(f"{stem}.json"), others, keys=keys, option="--output_dir", hint=hint)


def write_report(
    folder: str | Path, report: Report, name: str = "benchmark", gate: Gate | None = None
) -> tuple[Path, Path, Path]:
    """Write ``<name>.json``, ``.md`` and ``.html`` into `folder`, each whole or not at all, and return the three paths.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a figure is NaN or infinite, which JSON cannot hold; nothing is written.
    """
    data = report.to_dict(gate)
    json.dumps(data, allow_nan=False)
    texts = report.to_markdown(gate), report.to_html(gate)
    paths = Path(folder) / f"{name}.json", Path(folder) / f"{name}.md", Path(folder) / f"{name}.html"
    files.write_json(paths[0], data)
    for path, text in zip(paths[1:], texts, strict=True):
        files.write_text(path, text)
    return paths
