"""The reference pages, made from the dataclasses of options: `python docs/reference/make.py` writes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from q8trt import Engine, api, pack, unpack
from q8trt.api import engines, models
from q8trt.cli.main import COMMANDS, command_module
from q8trt.console.options import Option, groups_in, options_in

#: For developers: the site does not show it.
_ORIGIN = "<!-- `python docs/reference/make.py` writes this page. -->\n"
_COMMANDS = """# Commands

Every command and its options. The exit code is 0 on success, 1 if a check failed, 2 for bad input or a missing
requirement, 130 after Ctrl-C and 143 after SIGTERM.
"""
_CONFIGURATIONS = """# Configurations

These dataclasses hold the options of the commands and of the Python API. All are frozen, and raise a `ConfigError` for
bad values.
"""
_PYTHON = """# Python API

{text}

The keywords are the fields of the [configurations](configurations.md).
"""
#: A line of a docstring that begins a section, and one that begins an item of it.
_SECTION, _ITEM = re.compile(r"([A-Z][a-z]+):"), re.compile(r"    ([*\w]+): (.+)")
#: Names of `q8trt.api` for types.
_ALIASES = {"AnyPath": "Path | str", "Messages": "Callable[[str], object]"}
_ALIAS = re.compile("|".join(_ALIASES))


def pages() -> dict[str, str]:
    """Return the pages, name -> Markdown."""
    public = [each for module in (models, engines) for each in _functions(module)]
    functions = [_function(each, f"q8trt.{each.__name__}") for each in (*public, pack, unpack)]
    python = "\n".join([_PYTHON.format(text=_docstring(api)), *functions, *_engine()])
    commands = "\n".join([_COMMANDS, *map(_command, COMMANDS)])
    classes: dict[Any, None] = {}
    for name in COMMANDS:
        classes |= dict.fromkeys(groups_in(command_module(name).PARSER.options))
    public = [each for each in classes if not each.__module__.startswith("q8trt.cli.")]
    configurations = "\n".join([_CONFIGURATIONS, *map(_configuration, sorted(public, key=lambda cls: cls.__name__))])
    texts = {"commands.md": commands, "configurations.md": configurations, "python.md": python}
    return {name: f"{text}\n{_ORIGIN}" for name, text in texts.items()}


def _functions(module: Any) -> list[Any]:
    """Return the functions of `q8trt.api` that a module of it has, in the order of its text."""
    members = [each for _, each in inspect.getmembers(module, inspect.isfunction) if each.__module__ == module.__name__]
    public = [each for each in members if each.__name__ in api.__all__]
    return sorted(public, key=lambda each: int(each.__code__.co_firstlineno))


def _engine() -> Iterator[str]:
    """Yield the sections of `Engine` and of its methods."""
    yield "\n".join(["## Engine", "", _docstring(Engine), ""])
    methods = inspect.getmembers(Engine, inspect.isroutine)
    for name, method in sorted(methods, key=lambda each: (each[0] != "load", each[0])):
        if not name.startswith("_"):
            owner = "q8trt.Engine" if inspect.ismethod(method) else "engine"
            yield _function(method, f"{owner}.{name}", level="###")


def _function(function: Any, call: str, level: str = "##") -> str:
    """Return the section of a function or a method: its signature and its docstring."""
    parameters = [f"    {each}," for each in _parameters(inspect.signature(function))]
    name, returns = function.__name__, function.__annotations__["return"]
    call = f"await {call}" if inspect.iscoroutinefunction(function) else call
    lines = [f"{level} {name}", "", "```python", f"{call}(", *parameters, f") -> {returns}", "```", ""]
    return "\n".join([*lines, _docstring(function), ""])


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    """Yield the parameters as they are written, with the mark before those that are keywords."""
    marked = False
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not marked:
            yield "*"
        marked = marked or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        annotation = _ALIAS.sub(lambda match: _ALIASES[match[0]], str(each.annotation))
        default = str(each.default) if isinstance(each.default, str) else each.default
        yield f"{stars}{each.name}: {annotation}" + ("" if default is each.empty else f" = {default!r}")


def _docstring(documented: Any) -> str:
    """Return a docstring as Markdown, its sections as headings and their items as lists."""
    lines = []
    for line in (inspect.getdoc(documented) or "").splitlines():
        if section := _SECTION.fullmatch(line):
            lines += [f"**{section[1]}**", ""]
        elif item := _ITEM.fullmatch(line):
            is_first = bool(lines) and lines[-1].endswith(":")
            lines += [*([""] if is_first else []), f"- `{item[1]}`: {item[2]}"]
        else:
            lines.append(line.removeprefix("    ") if line.startswith("    ") and " = " not in line else line)
    return "\n".join(lines)


def _command(name: str) -> str:
    """Return the section of a command."""
    parser = command_module(name).PARSER
    lines = [f"## {parser.prog}", "", _text(" ".join(parser.description.split())), ""]
    if parser.epilog:
        examples = (_example(line.split("example: ")[-1].strip()) for line in parser.epilog.splitlines())
        lines += ["```sh", *examples, "```", ""]
    groups: dict[str, list[Option]] = {}
    for option in options_in(parser.options):
        groups.setdefault(option.group, []).append(option)
    for title, options in groups.items():
        rows = ((_flags(each), _meaning(each)) for each in options)
        lines += [*([f"**{title}**", ""] if title else []), *_table("option", rows), ""]
    return "\n".join(lines)


def _configuration(cls: type) -> str:
    """Return the section of a dataclass."""
    options = {each.name: each for each in options_in(cls)}
    rows = ((f"`{each.name}`", _field(each, options.get(each.name))) for each in fields(cls))
    summary = (cls.__doc__ or "").partition("\n\n")[0]
    return "\n".join(
        [
            f"## {cls.__name__}",
            "",
            f"`{cls.__module__}.{cls.__name__}`: {summary}",
            "",
            *_table("field", rows),
            "",
        ]
    )


def _field(field: Field[Any], option: Option | None) -> str:
    """Return the meaning of a field of a dataclass, its type and its default."""
    lines = [f"Type: {_code(str(field.type))}."]
    value = str(field.default) if isinstance(field.default, str) else field.default
    default = "" if value is MISSING else _code(repr(value))
    if "group" in field.metadata:
        return "<br>".join([f"options of the group: {field.metadata['group']}", *lines])
    if option is None:
        return "<br>".join([*lines, *([f"Default: {default}."] if default else [])])
    accepted = option.values.text if option.values else ", ".join(option.choices)
    defaults = [each for each in (default, _text(option.unset)) if each]
    lines += [f"Values: {_text(accepted)}."] if accepted else []
    lines += [f"Default: {', '.join(defaults)}."] if defaults else []
    return f"{_text(option.help)}<br>{' '.join(lines)}"


def _meaning(option: Option) -> str:
    """Return the help text of an option, its values and its default."""
    facts = {"Value": _values(option), "Default": option.default_text}
    lines = " ".join(f"{name}: {_text(text).removesuffix('.')}." for name, text in facts.items() if text)
    return _text(option.help) + (f"<br>{lines}" if lines else "")


def _table(first: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a table of two columns, which fits the page of a phone."""
    yield f"| {first} | meaning |"
    yield "|---|---|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _example(line: str) -> str:
    """Return an example of a command with its remark as a comment of the shell."""
    return re.sub(r"\s{2,}\((.*)\)$", r"  # \1", line)


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
    """Return `text` as a code span of a table; a bar is an entity, because not every Markdown unescapes it in backticks."""
    return f"<code>{_text(text)}</code>".replace("\\|", "&#124;") if "|" in text else f"`{text}`"


def _text(text: str) -> str:
    """Return `text` as it is in Markdown: no cell ends early, no word becomes HTML or emphasis."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|*_])", r"\\\1", escaped)


if __name__ == "__main__":
    for name, page in pages().items():
        Path(__file__).with_name(name).write_text(page, encoding="utf-8")
