"""Options as keyword arguments of Python functions. `q8trt.console.options` declares the fields."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from q8trt.console.options import Option, from_values, options_in
from q8trt.errors import ConfigError, nearest

_T = TypeVar("_T")


def take(cls: type[_T], config: _T | None, keywords: dict[str, Any]) -> _T | None:
    """Take the options of the dataclass `cls` out of `keywords` and return them as a `cls`.

    A keyword that is None counts as left out. Without any such keyword, `config` is returned.

    Raises:
        ConfigError: `config` is not a `cls`, an option is given beside it, or an option has a value that it does not accept.
    """
    if config is not None and not isinstance(config, cls):
        raise ConfigError(f"{config!r} is not a {cls.__name__}; give options by keyword, such as name=value")
    known = {name: each for each in options_in(cls) for name in (each.name, each.flag)}
    taken = [(known[name], keywords.pop(name)) for name in list(keywords) if name in known]
    values = {option.name: _value(option, value) for option, value in taken if value is not None}
    if config is not None and values:
        raise ConfigError(f"{next(iter(values))} is a field of the {cls.__name__} that was given; change it there")
    return from_values(cls, values) if values else config


def _value(option: Option, value: Any) -> Any:
    """Return the value of an option. If the option has a function `read`, text is read as on the command line."""
    if isinstance(value, str) and option.read:
        return option.read(value)
    if option.count is None:
        return _single(option, value)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{option.name}={value!r}, expected a list or a tuple")
    return tuple(_single(option, each) for each in value)


def _single(option: Option, value: Any) -> Any:
    """Return one value of an option, with its type checked."""
    kind = typing.get_origin(option.kind) or option.kind
    if isinstance(value, os.PathLike) and kind is str:
        return os.fspath(value)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    kinds = (int, float) if kind is float else kind
    is_checked = kind is tuple or (kind in (bool, int, float, str) and (option.count is not None or not option.read))
    if is_checked and (not isinstance(value, kinds) or isinstance(value, bool) is not (kind is bool)):
        raise ConfigError(f"{option.name}={value!r}, expected {kind.__name__}")
    return value


def check_known(keywords: Mapping[str, Any], *classes: type) -> None:
    """Raise ConfigError if a keyword is not an option of any of `classes`."""
    options = [each for cls in classes for each in options_in(cls)]
    names = [each.name for each in options]
    if unknown := [name for name in keywords if name not in names and name not in {each.flag for each in options}]:
        raise ConfigError(f"unknown option {unknown[0]!r}{nearest(unknown[0], names)}; known: {', '.join(names)}")
