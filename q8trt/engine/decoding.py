"""JSON to the frozen dataclass that it came from, checked field by field: what a file or another process says is not
taken on trust, and what is wrong with it is named by its place."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

_T = TypeVar("_T")
_JSON_NAMES = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class MalformedError(Exception):
    """A value is not what its field says. ``str(error)`` names the field, as in ``profiles[0].max must have 2 entries``."""


def decode(cls: type[_T], data: Any) -> _T:
    """The `cls`, a dataclass, whose `dataclasses.asdict` went through JSON as `data`.

    Raises:
        MalformedError: a key is missing or unknown, or a value is not of its field's type.
    """
    decoded: _T = _decode(cls, data, "")
    return decoded


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON into what the annotation `kind` says: a dataclass, a container, a scalar, or one of these or None."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _decode(arguments[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, value, where)
    expected = origin or kind
    if expected is tuple:
        expected = list  # JSON has no tuples
    if type(value) is not expected:
        raise MalformedError(f"{where} must be {_JSON_NAMES[expected]}, not {json.dumps(value)[:40]}")
    if origin is dict:
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return origin(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is tuple:
        if len(value) != len(arguments):
            raise MalformedError(f"{where} must have {len(arguments)} entries, not {len(value)}")
        return tuple(_decode(each, item, where) for each, item in zip(arguments, value, strict=True))
    return value


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise MalformedError(f"{where or 'the manifest'} must be an object")
    hints = typing.get_type_hints(kind)
    within = f" in {where}" if where else ""
    if missing := sorted(hints.keys() - value.keys()):
        raise MalformedError(f"missing key{within}: {', '.join(missing)}")
    if unknown := sorted(value.keys() - hints.keys()):
        raise MalformedError(f"unknown key{within}: {', '.join(unknown)}")
    prefix = f"{where}." if where else ""
    return kind(**{name: _decode(hint, value[name], prefix + name) for name, hint in hints.items()})
