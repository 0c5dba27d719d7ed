"""Options: dataclass fields that carry their help text.

A field made by `option` is an option of each command whose options contain its dataclass; a field made by `group` has a
dataclass of options. The parser, its help, the reference pages and the commands that q8trt prints are made from these fields.

    @dataclass(frozen=True)
    class BuildConfig:
        workspace_mib: int | None = option(None, "scratch memory of a layer, MiB", values=at_least(1), unset="all of the GPU's")
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from q8trt.errors import ConfigError, nearest

_T = TypeVar("_T")


@dataclass(frozen=True)
class Values:
    """The numbers that an option accepts. `text` completes "expected ...", `contain` checks a number."""

    text: str
    contain: Callable[[Any], bool]


def at_least(least: float) -> Values:
    """Return the numbers that are `least` or more."""
    return Values(f"{least} or more", lambda value: value >= least)


def more_than(bound: float) -> Values:
    """Return the numbers above `bound`."""
    return Values(f"more than {bound}", lambda value: value > bound)


def between(least: int, most: int) -> Values:
    """Return the numbers from `least` to `most`, both included."""
    return Values(f"{least} to {most}", lambda value: least <= value <= most)


#: Probabilities below 1.
SHARE = Values("from 0 to below 1", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class Option:
    """An option, as its field declares it.

    Attributes:
        help: the effect of the value: one sentence without its full stop, with the unit and without the default.
        default: the default value; MISSING if the option is required.
        group: heading in the help; "" for the heading of its group.
        flag: name on the command line without dashes; "" for the name of the field.
        metavar: placeholder of the value in the help.
        unset: the effect of leaving the option out, if the default does not show it.
        values: the numbers that it accepts.
        choices: the words that it accepts.
        read: function that reads the value from the text of the command line; raises ConfigError.
        show: function that writes a value as text, the inverse of `read`.
        bare: text of the value if the flag is given without a value.
        missing: the remedy if a required option is missing.
        positional: the value has no flag.
        repeat: the flag is given once for each value.
        name: name of the field.
        kind: type of one value, such as bool, int, float, str or Path.
        count: number of values: "+" for one or more, None for one that is not a tuple.
    """

    help: str
    default: Any = MISSING
    group: str = ""
    flag: str = ""
    metavar: str | tuple[str, ...] | None = None
    unset: str = ""
    values: Values | None = None
    choices: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    show: Callable[[Any], str] | None = None
    bare: str | None = None
    missing: str = ""
    positional: bool = False
    repeat: bool = False
    name: str = ""
    kind: Any = str
    count: int | Literal["+"] | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags. A switch that is not off by default also has one to turn it off."""
        has_negative = self.kind is bool and self.default is not False
        return (f"--{self.flag}", *([f"--no_{self.flag}"] if has_negative else []))

    @property
    def default_text(self) -> str:
        """The text of the default in the help; "" if there is none to show."""
        if self.unset or self.default == () or any(self.default is each for each in (MISSING, None, False)):
            return self.unset
        if self.show:
            return self.show(self.default)
        if isinstance(self.default, tuple):
            return " ".join(map(str, self.default))
        return "on" if self.default is True else f"{self.default:g}" if self.kind is float else str(self.default)

    def words(self, value: Any) -> list[str]:
        """Return the words of a command line that set the option to `value`."""
        if isinstance(value, bool):
            return [f"--{self.flag}" if value else f"--no_{self.flag}"]
        if isinstance(value, tuple) and not self.show:
            return [f"--{self.flag}", *map(str, value)]
        text = self.show(value) if self.show else str(value)
        return [f"--{self.flag}={text}"] if text.startswith("-") else [f"--{self.flag}", text]


def option(default: Any = MISSING, help: str = "", *, default_factory: Any = MISSING, **details: Any) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: the default value; MISSING if the option is required.
        help: see `Option`.
        default_factory: a function that returns the default, instead of `default`.
        details: other attributes of `Option`.
    """
    return _field(Option(help, default, **details), default_factory)


def _field(declared: Option, default_factory: Any = MISSING) -> Any:
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={"option": declared})
    return field(default=declared.default, metadata={"option": declared})


def same_option(cls: Any, name: str, **changes: Any) -> Any:
    """Return a field with the option `name` of the dataclass `cls`, in which `changes` replace attributes of `Option`."""
    original = cls.__dataclass_fields__[name]
    factory = MISSING if "default" in changes else original.default_factory
    return _field(replace(original.metadata["option"], **changes), factory)


def group(title: str, *, only: Sequence[str] = (), unset: str = "", needs: str = "", **default: Any) -> Any:
    """Return a dataclass field whose value is a dataclass of options.

    Args:
        title: heading of the options in the help.
        only: names of the options that the command has; () for all.
        unset: what the command uses if none of the options is given; the field is then None.
        needs: the switch that the options require.
        default: `default` or `default_factory` of the field.
    """
    return field(metadata={"group": title, "only": tuple(only), "unset": unset, "needs": needs}, **default)


def options_in(cls: Any, title: str = "", only: Sequence[str] = ()) -> tuple[Option, ...]:
    """Return the options of a dataclass: those of its own fields, then those of its groups.

    Args:
        cls: the dataclass.
        title: heading of the options that do not name another.
        only: names of the options to return, of those of its own fields; () for all.
    """
    hints = typing.get_type_hints(cls)
    direct = [
        _option(each, hints[each.name], title)
        for each in fields(cls)
        if "option" in each.metadata and (not only or each.name in only)
    ]
    nested = [
        inner
        for each in _groups(cls)
        for inner in options_in(_plain(hints[each.name]), each.metadata["group"], each.metadata["only"])
    ]
    return (*direct, *nested)


def groups_in(cls: Any) -> Iterator[Any]:
    """Yield the dataclass of each group of `cls`, followed by those of its own groups."""
    hints = typing.get_type_hints(cls)
    for each in _groups(cls):
        inner = _plain(hints[each.name])
        yield inner
        yield from groups_in(inner)


def from_values(cls: type[_T], values: Mapping[str, Any]) -> _T:
    """Return the dataclass `cls` with `values`, option -> value, in its own fields and in those of its groups.

    Raises:
        ConfigError: an option is unknown or missing, has a value that it does not accept, or lacks the switch that it needs.
    """
    names = [each.name for each in options_in(cls)]
    if unknown := [name for name in values if name not in names]:
        raise ConfigError(f"unknown option {unknown[0]!r}{nearest(unknown[0], names)}; known: {', '.join(names)}")
    return _build(cls, values)


def _build(cls: type[_T], values: Mapping[str, Any], unset: str = "") -> _T:
    hints = typing.get_type_hints(cls)
    arguments = {}
    for each in fields(cls):  # type: ignore[arg-type]
        if "group" in each.metadata:
            inner = _plain(hints[each.name])
            flags = {each.name: each.flag for each in options_in(inner, only=each.metadata["only"])}
            chosen = {name: values[name] for name in flags if name in values}
            if chosen and (switch := each.metadata["needs"]) and not values.get(switch):
                raise ConfigError(f"--{flags[next(iter(chosen))]} needs --{switch}")
            if each.default is not MISSING and each.default is not None:
                arguments[each.name] = replace(each.default, **chosen)
            elif chosen or not _is_optional(hints[each.name]):
                arguments[each.name] = _build(inner, chosen, each.metadata["unset"])
            else:
                arguments[each.name] = None
        elif each.name in values:
            arguments[each.name] = values[each.name]
        elif "option" in each.metadata and each.default is MISSING and each.default_factory is MISSING:
            if unset:
                flags = {each.name: each.flag for each in options_in(cls)}
                raise ConfigError(f"--{flags[next(iter(values))]} needs --{each.name}; or leave it out to use {unset}")
            raise ConfigError(f"--{each.name} is missing; {each.metadata['option'].missing or 'give a value'}")
    return cls(**arguments)


def check_options(config: Any) -> None:
    """Check the values of the options of a dataclass. `__post_init__` calls it.

    Raises:
        ConfigError: a value is not one of the choices, is not finite, or is out of its range.
    """
    for each in options_in(type(config)):
        if each.name not in config.__dataclass_fields__:
            continue
        value = getattr(config, each.name)
        if each.choices and value is not None and value not in each.choices:
            hint = nearest(str(value), each.choices)
            raise ConfigError(f"unknown --{each.flag} {str(value)!r}{hint}; known: {', '.join(each.choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{each.flag} {value}, expected a finite number")
        if each.values and value is not None and not each.values.contain(value):
            raise ConfigError(f"--{each.flag} {value}, expected {each.values.text}")


def options_of(config: Any) -> list[str]:
    """Return the words of a command line that recreate the dataclass `config`: its options that differ from their default.

    An option that is None is left out.
    """
    words: list[str] = []
    for each in options_in(type(config)):
        if each.name in config.__dataclass_fields__:
            value = getattr(config, each.name)
            words += each.words(value) if value is not None and value != each.default else []
    return words


def _groups(cls: type) -> Iterator[Field[Any]]:
    return (each for each in fields(cls) if "group" in each.metadata)


def _option(each: Field[Any], annotation: Any, title: str) -> Option:
    declared: Option = each.metadata["option"]
    kind, count = _kind(annotation)
    if typing.get_origin(kind) is Literal:
        kind, declared = str, replace(declared, choices=typing.get_args(kind))
    default = each.default if each.default_factory is MISSING else None
    group, flag = declared.group or title, declared.flag or each.name
    return replace(declared, name=each.name, default=default, kind=kind, count=count, group=group, flag=flag)


def _kind(annotation: Any) -> tuple[Any, Any]:
    """Return the type of one value of an annotation, and `Option.count`."""
    plain = _plain(annotation)
    if typing.get_origin(plain) is not tuple:
        return plain, None
    kinds = typing.get_args(plain)
    return kinds[0], "+" if kinds[-1] is Ellipsis else len(kinds)


def _plain(annotation: Any) -> Any:
    """Return an annotation without ``| None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _is_optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)
