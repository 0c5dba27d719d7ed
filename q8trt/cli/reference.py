"""The reference pages, made from the dataclasses of options: `python -m q8trt.cli.reference docs/reference` writes them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from q8trt.cli.main import COMMANDS, command_module
from q8trt.console.options import Option, groups_in, options_in

_COMMANDS = """# Commands

Every command and its options. Exit codes: 0 done; 1 a check failed; 2 bad input, or the machine lacks something; 130 stopped
by Ctrl-C; 143 stopped by SIGTERM. `python -m q8trt.cli.reference docs/reference` writes this page.
"""
_CONFIGURATIONS = """# Configurations

The dataclasses that hold the options of commands and of the Python API. All are frozen, and refuse bad values with a
`ConfigError`. `python -m q8trt.cli.reference docs/reference` writes this page.
"""


def pages() -> dict[str, str]:
    """Return the pages, name -> Markdown."""
    commands = "\n".join([_COMMANDS, *map(_command, COMMANDS)])
    classes: dict[Any, None] = {}
    for name in COMMANDS:
        classes |= dict.fromkeys(groups_in(command_module(name).parser().options))
    public = [each for each in classes if not each.__module__.startswith("q8trt.cli.")]
    configurations = "\n".join([_CONFIGURATIONS, *map(_configuration, sorted(public, key=lambda cls: cls.__name__))])
    return {"commands.md": commands, "configurations.md": configurations}


def _command(name: str) -> str:
    """Return the section of a command."""
    parser = command_module(name).parser()
    lines = [f"## {parser.prog}", "", _text(" ".join(parser.description.split())), ""]
    if parser.epilog:
        examples = (line.split("example: ")[-1].strip() for line in parser.epilog.splitlines())
        lines += ["```sh", *examples, "```", ""]
    groups: dict[str, list[Option]] = {}
    for option in options_in(parser.options):
        groups.setdefault(option.group, []).append(option)
    for title, options in groups.items():
        rows = ((_flags(each), _text(_values(each)), _text(each.default_text), _text(each.help)) for each in options)
        lines += [*([f"**{title}**", ""] if title else []), *_table("option", "value", rows), ""]
    return "\n".join(lines)


def _configuration(cls: type) -> str:
    """Return the section of a dataclass."""
    options = {each.name: each for each in options_in(cls)}
    rows = ((f"`{each.name}`", _code(str(each.type)), *_default_and_help(each, options)) for each in fields(cls))
    summary = (cls.__doc__ or "").partition("\n\n")[0]
    return "\n".join(
        [
            f"## {cls.__name__}",
            "",
            f"`{cls.__module__}.{cls.__name__}`: {summary}",
            "",
            *_table("field", "type", rows),
            "",
        ]
    )


def _default_and_help(field: Field[Any], options: dict[str, Option]) -> tuple[str, str]:
    option = options.get(field.name) if "option" in field.metadata else None
    value = str(field.default) if isinstance(field.default, str) else field.default
    default = "" if value is MISSING else _code(repr(value))
    if option is None:
        return ("", field.metadata["group"]) if "group" in field.metadata else (default, "")
    accepted = option.values.text if option.values else ", ".join(option.choices)
    text = _text(option.help + (f" ({accepted})" if accepted else ""))
    return (f"{default}: {_text(option.unset)}" if default and option.unset else default or option.unset), text


def _table(first: str, second: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {first} | {second} | default | |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _flags(option: Option) -> str:
    if option.positional:
        return _code(str(option.metavar))
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


def _code(text: str) -> str:
    """Return `text` as a code span of a table."""
    return f"`{text}`".replace("|", "\\|")


def _text(text: str) -> str:
    """Return `text` as it is in Markdown: no cell ends early, no word becomes HTML or emphasis."""
    return re.sub(r"([|<>*_])", r"\\\1", text)


if __name__ == "__main__":
    for name, page in pages().items():
        (Path(sys.argv[1]) / name).write_text(page, encoding="utf-8")
