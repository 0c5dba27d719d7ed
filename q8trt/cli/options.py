"""Command-line options made from the dataclasses that hold them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from q8trt.console.names import printable
from q8trt.errors import ConfigError, nearest
from q8trt.quantization.libraries import LIBRARIES
from q8trt.runs.run import RUNS_DIR
from q8trt.tasks.data import DataConfig


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are a ConfigError, and which never guesses at abbreviated options."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing the usage."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, naming the nearest option for one that does not exist."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown argument {unknown[0]!r}{nearest(unknown[0].split('=')[0], options)}")
        return parsed

    def given(self, argv: Sequence[str]) -> set[str]:
        """Names of the options that `argv` sets itself, defaults left out."""
        written = {argument.partition("=")[0] for argument in argv}
        return {action.dest for action in self._actions if written & set(action.option_strings)}


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The plain type behind an annotation, and whether it takes several values."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def add_dataclass(parser: argparse.ArgumentParser, cls: type, title: str, skip: Sequence[str] = ()) -> None:
    """Give `parser` an option for each field of the dataclass `cls`, with the field's own help text and default."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        shown = "" if default is None or default is False else f" (default: {default})"
        kind, several = _kind(hints[field.name])
        text = (field.metadata["help"] + shown).replace("%", "%%")
        if kind is bool:
            group.add_argument(f"--{field.name}", action="store_true", default=default, help=text)
            if default:
                group.add_argument(f"--no_{field.name}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
                group._group_actions[-2].help = f"{field.metadata['help']} (default; --no_{field.name} for the reverse)"
        else:
            group.add_argument(
                f"--{field.name}", type=kind, default=default, nargs="+" if several else None,
                metavar="N" if kind in (int, float) else "TEXT", help=text,
            )  # fmt: skip


def read_dataclass(cls: type, args: argparse.Namespace, **fixed: Any) -> Any:
    """Build the dataclass `cls` from parsed options; `fixed` gives fields that are no options."""
    names = {field.name for field in dataclasses.fields(cls)} - set(fixed)
    values = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}, **fixed)


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    """The option that says where run folders lie."""
    parser.add_argument("--runs_dir", default=RUNS_DIR, metavar="DIR", help="folder of runs (default: runs)")


def add_quantizer(parser: Any) -> None:
    """``--quantizer``, of a parser or of a group of its options."""
    parser.add_argument(
        "--quantizer", default=LIBRARIES[0], choices=LIBRARIES,
        help=f"whose quantizers and calibrators (default: {LIBRARIES[0]})",
    )  # fmt: skip


def add_data(parser: argparse.ArgumentParser, default: str = "GLUE from the hub") -> None:
    """The options that say which rows; `default` says which without them."""
    add_dataclass(parser, DataConfig, f"data (default: {default})")


def read_data(args: argparse.Namespace) -> DataConfig:
    """The rows that the options say.

    Raises:
        ConfigError: no task, or options that do not go together.
    """
    from q8trt.tasks.glue import TASKS

    if not args.task:
        raise ConfigError(f"--task is missing; give one of {', '.join(TASKS)}, or custom with your own files")
    config: DataConfig = read_dataclass(DataConfig, args)
    return config


def chosen_data(args: argparse.Namespace) -> DataConfig | None:
    """As `read_data`, but None where no option of the data was given: the command then takes the run's rows.

    Raises:
        ConfigError: data without --task, or options that do not go together.
    """
    if not args.task:
        for field in dataclasses.fields(DataConfig):
            if field.name != "task" and getattr(args, field.name) != field.default:
                raise ConfigError(f"--{field.name} needs --task; or leave it out to take the data of the run")
        return None
    return read_data(args)


def say(text: str = "") -> None:
    """Print a line of the command's answer, from the main process only."""
    from q8trt.console.progress import is_main_process

    if is_main_process():
        print(printable(text, "\n\t"), flush=True)


def warn(text: str) -> None:
    """Print a remark on stderr."""
    print(printable(text, "\n\t"), file=sys.stderr, flush=True)
