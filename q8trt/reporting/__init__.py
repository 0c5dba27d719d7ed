"""Reports: facts as dataclasses, the sentences made from them, and tables for the terminal, Markdown and HTML."""

from q8trt.reporting.gate import Gate
from q8trt.reporting.measurements import Parity, Ratio, Row
from q8trt.reporting.report import Report, print_report, write_report
from q8trt.reporting.table import Column, Phrase, Table, words
from q8trt.reporting.verdict import verdict, verdicts

__all__ = [
    "Column",
    "Gate",
    "Parity",
    "Phrase",
    "Ratio",
    "Report",
    "Row",
    "Table",
    "comparison",
    "comparison_page",
    "engine_summary",
    "folder_info",
    "gate",
    "head",
    "html",
    "lint_report",
    "listing",
    "markdown",
    "parity",
    "print_report",
    "report",
    "scores",
    "sensitivity_plot",
    "stored",
    "table",
    "terminal",
    "verdict",
    "verdicts",
    "words",
    "write_report",
]
