"""A benchmark's figures as data, on the terminal, as JSON and as Markdown."""

from q8trt.reporting.markdown import markdown, write_report
from q8trt.reporting.report import Parity, Ratio, Report, Row, verdict
from q8trt.reporting.table import print_report

__all__ = ["Parity", "Ratio", "Report", "Row", "markdown", "print_report", "verdict", "write_report"]
