"""The reference of commands in Markdown: `python -m q8trt.cli.reference > docs/reference/commands.md`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from q8trt.cli.main import COMMANDS, command_module
from q8trt.console.options import Option, options_in

_HEAD = """# Commands

Every command and its options, made from the code by `python -m q8trt.cli.reference`. An option that is a switch takes no
value. Exit codes: 0 done; 1 a check failed; 2 bad input, or the machine lacks something; 130 stopped by Ctrl-C; 143 stopped
by SIGTERM.
"""


def reference() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *map(_command, COMMANDS)])


def _command(name: str) -> str:
    parser = command_module(name).parser()
    lines = [f"## {parser.prog}", "", _text(" ".join(parser.description.split())), ""]
    if parser.epilog:
        examples = (line.split("example: ")[-1].strip() for line in parser.epilog.splitlines())
        lines += ["```sh", *examples, "```", ""]
    groups: dict[str, list[Option]] = {}
    for option in options_in(parser.options):
        groups.setdefault(option.group, []).append(option)
    for title, options in groups.items():
        lines += [*([f"**{title}**", ""] if title else []), *_table(options), ""]
    return "\n".join(lines)


def _table(options: Iterable[Option]) -> list[str]:
    rows = [(_flags(each), _values(each), each.default_text, each.help) for each in options]
    return [
        "| option | value | default | |",
        "|---|---|---|---|",
        *(f"| {flags} | {_text(values)} | {_text(default)} | {_text(help)} |" for flags, values, default, help in rows),
    ]


def _flags(option: Option) -> str:
    if option.positional:
        return f"`{option.metavar}`".replace("|", "\\|")
    return ", ".join(f"`{flag}`" for flag in option.flags)


def _values(option: Option) -> str:
    """Return the values that an option takes."""
    if option.kind is bool:
        return ""
    if option.choices:
        return ", ".join(option.choices)
    names = {int: "whole number", float: "number"} if not option.read else {}
    metavar = " ".join(option.metavar) if isinstance(option.metavar, tuple) else option.metavar or "text"
    text = names.get(option.kind, metavar) + (" ..." if option.count == "+" and not option.read else "")
    return f"{text}, {option.values.text}" if option.values else text


def _text(text: str) -> str:
    """Return `text` as it is in Markdown: no cell ends early, no word becomes HTML or emphasis."""
    return re.sub(r"([|<>*_])", r"\\\1", text)


if __name__ == "__main__":
    print(reference(), end="")
