"""The parser of a command, made from the dataclass of its options."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING
from shutil import get_terminal_size
from textwrap import fill
from typing import Any, NoReturn

from q8trt.console.options import Option, from_values, options_in
from q8trt.errors import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError for errors and does not accept abbreviated options.

    Args:
        options: the dataclass of the options, see `q8trt.console.options`.
        prog: the command, as typed.
        text: a paragraph that describes the command and, after an empty line, examples.
    """

    def __init__(self, options: type, prog: str, text: str | None) -> None:
        description, _, examples = (text or "").strip().partition("\n\n")
        super().__init__(
            prog,
            description=fill(" ".join(description.split()), get_terminal_size().columns - 2, break_on_hyphens=False),
            epilog=examples,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.options = options
        groups: dict[str, Any] = {"": self}
        for each in options_in(options):
            if each.group not in groups:
                groups[each.group] = self.add_argument_group(each.group)
            _add(groups[each.group], each)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with `message`, instead of printing the usage and exiting."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def typed_options(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the options that `argv` gives, name -> value.

        Raises:
            ConfigError: an option is unknown or missing, or a value cannot be read.
        """
        parsed, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"unknown argument {unknown[0]!r}{nearest(unknown[0].split('=')[0], flags)}")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()}

    def read(self, argv: Sequence[str]) -> Any:
        """Return the dataclass of the options that `argv` gives.

        Raises:
            ConfigError: an option is unknown or missing, or has a value that it does not accept.
        """
        return from_values(self.options, self.typed_options(argv))

    def check_alone(self, typed: Mapping[str, Any], allowed: Collection[str], reason: str) -> None:
        """Raise ConfigError with `reason` if an option that is not in `allowed` is typed."""
        for each in sorted(options_in(self.options), key=lambda each: each.flag):
            if each.name in typed and each.name not in allowed:
                flag = each.flags[0 if typed[each.name] else -1]
                raise ConfigError(f"{reason}; drop {flag}")


def _add(parser: Any, option: Option) -> None:
    """Add an option to `parser` or to one of its groups."""
    details: dict[str, Any] = {"help": _help(option).replace("%", "%%")}
    if option.kind is bool:
        parser.add_argument(*option.flags, dest=option.name, action=_Switch, **details)
        return
    details["type"] = option.read or option.kind
    details["metavar"] = option.metavar or ("N" if option.kind in (int, float) else "TEXT")
    if option.choices:
        details |= {"type": str, "choices": option.choices, "metavar": option.metavar}
    if option.repeat:
        details["action"] = "append"
    elif option.count and not option.read:
        details["nargs"] = "*" if option.positional and option.default is not MISSING else option.count
    elif option.positional and option.default is not MISSING:
        details["nargs"] = "?"
    if option.bare is not None:
        details |= {"nargs": "?", "const": option.bare}
    if option.positional:
        parser.add_argument(option.name, **details)
    else:
        required = option.default is MISSING and not option.missing
        parser.add_argument(*option.flags, dest=option.name, required=required, **details)


def _help(option: Option) -> str:
    """Return the help text with the default in parentheses, inside those that already end the text."""
    if not option.default_text:
        return option.help
    text, end = (option.help[:-1], "; ") if option.help.endswith(")") else (option.help, " (")
    return f"{text}{end}default: {option.default_text})"


class _Switch(argparse.Action):
    """The action of ``--flag`` and, for a switch that is not off by default, ``--no_flag``."""

    def __init__(self, option_strings: Sequence[str], dest: str, **details: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **details)

    def format_usage(self) -> str:
        """Return the flags for the usage line."""
        return " | ".join(self.option_strings)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store False for ``--no_flag`` of a switch with two flags, otherwise True."""
        setattr(namespace, self.dest, not (option_string or "").startswith("--no_") or len(self.option_strings) == 1)
