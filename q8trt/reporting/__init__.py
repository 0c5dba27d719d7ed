"""A benchmark's figures as data, on the terminal, as JSON and as Markdown."""

from .markdown import markdown, write_report
from .report import Parity, Ratio, Report, Row, verdict
from .table import print_report

__all__ = ["Parity", "Ratio", "Report", "Row", "markdown", "print_report", "verdict", "write_report"]
