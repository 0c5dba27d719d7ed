"""Tables and lists in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from q8trt.console.names import markdown_code, markdown_text
from q8trt.reporting.table import Table


class Markdown(str):
    """Text of a cell that is Markdown already, such as code."""


def markdown_table(table: Table) -> list[str]:
    """Return the lines of a table and its legend, with an empty line at the end."""

    def line(cells: Iterable[str]) -> str:
        texts = (" ".join(cell.split()) if isinstance(cell, Markdown) else markdown_text(cell) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    rule = "| " + " | ".join("---" if column.align == "left" else "---:" for column in table.columns) + " |"
    lines = [line(column.title for column in table.columns), rule, *map(line, table.texts()), ""]
    return [*lines, markdown_text(table.legend), ""] if table.legend else lines


def markdown_section(table: Table) -> list[str]:
    """Return the lines of a table under its title."""
    return [f"## {markdown_text(table.title)}", "", *markdown_table(table)]


def markdown_list(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return nested mappings as nested bullets; a command is code."""
    lines = []
    for name, value in values.items():
        key = markdown_text(str(name))
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}", *markdown_list(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}- {key}: {markdown_text(', '.join(map(str, value))) or 'none'}")
        else:
            text = "unknown" if value is None else str(value)
            text = markdown_code(text) if name == "command" else markdown_text(text)
            lines.append(f"{indent}- {key}: {text}")
    return lines
