"""A benchmark's figures as data, on the terminal, as JSON, Markdown and one HTML page."""

from q8trt.reporting.html import html
from q8trt.reporting.markdown import markdown
from q8trt.reporting.output import report_dict, write_report
from q8trt.reporting.report import Parity, Ratio, Report, Row
from q8trt.reporting.table import print_report
from q8trt.reporting.verdict import Gate, verdict

__all__ = [
    "Gate", "Parity", "Ratio", "Report", "Row", "html", "markdown", "print_report", "report_dict", "verdict", "write_report"
]  # fmt: skip
