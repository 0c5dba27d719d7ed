"""A benchmark report on the terminal and in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from q8trt.console.names import markdown_text
from q8trt.reporting.benchmark import Report
from q8trt.reporting.benchmark_tables import detail_tables, document_summary, latencies, lengths, parts, summary
from q8trt.reporting.markdown import markdown_list, markdown_section, markdown_table
from q8trt.reporting.notes import gpu_note
from q8trt.reporting.table import Phrase
from q8trt.reporting.terminal import print_lines, print_table, say
from q8trt.reporting.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Console


def print_report(report: Report, console: Console) -> None:
    """Print title, figures, verdict and notes, in the widest layout that `console` holds without cutting a number."""
    say(console, report.title, "bold")
    console.print()
    if not print_table(console, summary(report), optional=True):
        print_table(console, summary(report, with_times=False))
    for table in (latencies(report), parts(report), lengths(report)):
        if table.rows:
            print_table(console, table, optional=True)
    print_lines(console, [*map(gpu_note, report.gpus), *verdict(report)])
    print_lines(console, [Phrase(f"Note: {note}", "warning") for note in report.all_notes])


def markdown(report: Report) -> str:
    """Return the report as Markdown: figures, verdict, notes, every metric, latency, length buckets, provenance."""
    lines = [f"# {markdown_text(report.title)}", "", *markdown_table(document_summary(report))]
    notes = [f"Note: {note}" for note in report.all_notes]
    remarks = [*(phrase.text for phrase in verdict(report)), *notes, *map(gpu_note, report.gpus)]
    lines += [f"- {markdown_text(remark)}" for remark in remarks] + ([""] if remarks else [])
    lines += [line for table in detail_tables(report) for line in markdown_section(table)]
    return "\n".join([*lines, "## Provenance", "", *markdown_list(report.origin)]) + "\n"
