"""Options as keyword arguments of Python functions: the fields of dataclasses that `q8trt.console.options` declares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from q8trt.console.options import Option, from_values, options_in
from q8trt.errors import ConfigError, nearest

_T = TypeVar("_T")


def take(cls: type[_T], config: _T | None, keywords: dict[str, Any]) -> _T | None:
    """Return `config`, or the dataclass `cls` of those `keywords` that are its options, taken out; None without either."""
    known = {name: each for each in options_in(cls) for name in (each.name, each.flag)}
    values = {known[name].name: _value(known[name], keywords.pop(name)) for name in list(keywords) if name in known}
    if config is not None and values:
        raise ConfigError(f"{next(iter(values))} is a field of the {cls.__name__} that was given; change it there")
    return from_values(cls, values) if values else config


def _value(option: Option, value: Any) -> Any:
    """Return the value of an option; a text is read as the command line reads it."""
    if isinstance(value, str) and option.read:
        return option.read(value)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, os.PathLike) and option.kind is str:
        return os.fspath(value)
    kinds = (int, float) if option.kind is float else option.kind
    is_plain = option.kind in (bool, int, float, str) and option.count is None and not option.read
    if (
        is_plain
        and value is not None
        and (not isinstance(value, kinds) or isinstance(value, bool) is not (option.kind is bool))
    ):
        raise ConfigError(f"{option.name}={value!r}, expected {option.kind.__name__}")
    return value


def check_taken(keywords: Mapping[str, Any], *classes: type) -> None:
    """Raise ConfigError for a keyword that no class took."""
    names = [each.name for cls in classes for each in options_in(cls)]
    for name in keywords:
        raise ConfigError(f"unknown option {name!r}{nearest(name, names)}; known: {', '.join(names)}")
