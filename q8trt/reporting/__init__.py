"""Reports: facts as dataclasses, the sentences made from them, and tables for the terminal, Markdown and HTML."""

from q8trt.reporting.benchmark import Parity, Ratio, Report, Row
from q8trt.reporting.benchmark_json import report_dict, write_report
from q8trt.reporting.benchmark_text import print_report
from q8trt.reporting.gate import Gate
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
    "benchmark_json",
    "benchmark_page",
    "comparison",
    "comparison_page",
    "engine_table",
    "gate",
    "html",
    "lint_report",
    "markdown",
    "parity",
    "print_report",
    "report_dict",
    "sensitivity_plot",
    "stored",
    "table",
    "terminal",
    "verdict",
    "verdicts",
    "words",
    "write_report",
]
