"""Reading of untrusted JSON and YAML. q8trt reads every such file with this module.

Size, depth, number of values and width of integers have limits, so no file can exhaust the memory or the stack. Other input
raises `MalformedError` with one line that names the place of the problem.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import typing
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import msgspec

_T = TypeVar("_T")
_MIB = 2**20
#: Names of JSON types in msgspec -> names in messages.
_NAMES = {
    "str": "a string",
    "int": "a whole number",
    "bool": "true or false",
    "float": "a number",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_WRONG_TYPE = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<actual>[^`]+)`")
_WRONG_LENGTH = re.compile(r"Expected `array` of length (?P<expected>\d+), got (?P<actual>\d+)")


class MalformedError(ValueError):
    """Data that exceed a limit, are not JSON or YAML, or do not match their schema. ``str(error)`` is one line."""


@dataclass(frozen=True)
class Limits:
    """Limits of one document.

    Attributes:
        size: size of the document in bytes.
        depth: levels of nesting.
        values: total number of values; keys do not count.
        bits: width of a whole number.
    """

    size: int = 64 * _MIB
    depth: int = 64
    values: int = 5_000_000
    bits: int = 64


DEFAULT = Limits()


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading in binary mode.

    Raises:
        OSError: the file is missing or cannot be read.
        MalformedError: it is not a regular file. Reading a pipe or a device may never end.
    """
    # Without O_NONBLOCK, opening a pipe that has no writer would wait forever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # `os.fdopen` raises for a folder, without its name
        os.close(handle)
        raise MalformedError("it is not a regular file")
    return os.fdopen(handle, "rb")


def read_limited(path: str | Path, limits: Limits = DEFAULT) -> bytes:
    """Return the bytes of a file. Raises the errors of `open_regular`, and MalformedError if the file is too large."""
    with open_regular(path) as file:
        data = file.read(limits.size + 1)
    _check_size(data, limits)
    return data


def _check_size(data: bytes | str, limits: Limits) -> None:
    if len(data) > limits.size:
        raise MalformedError(f"it is larger than the limit of {limits.size:,} bytes")


def read_json(path: str | Path, limits: Limits = DEFAULT) -> Any:
    """Read and parse a JSON file. Raises the errors of `read_limited` and `parse_json`."""
    return parse_json(read_limited(path, limits), limits)


def parse_json(data: bytes | str, limits: Limits = DEFAULT) -> Any:
    """Parse JSON. Raises MalformedError if `data` are not JSON or not UTF-8, contain NaN or infinity, or exceed a limit."""
    _check_size(data, limits)
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise MalformedError(f"it is nested more than {limits.depth} levels deep") from None
    except msgspec.ValidationError as error:  # a number that fits neither a double nor a 64-bit integer
        raise MalformedError(_first_lower(str(error))) from None
    except msgspec.DecodeError as error:
        raise MalformedError(f"not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    except UnicodeError as error:
        raise MalformedError(f"not UTF-8: {getattr(error, 'reason', error)}") from None
    _check_limits(value, limits)
    return value


def parse_yaml(data: bytes, limits: Limits = DEFAULT) -> Any:
    """Parse one YAML document whose values all exist in JSON: no dates, no binary data, no recursive aliases.

    Raises:
        MalformedError: the document is not YAML or not UTF-8, has a value of another type, a duplicate key or a merge key
            (``<<``), or exceeds a limit.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """Reject merge keys, which can double an object at each level, and duplicate keys, of which only the last counts."""
            seen = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.YAMLError("merge keys (<<) are not read; write the keys out")
                if key.value.__hash__ and (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"key {key.value!r} comes twice in one object")
                if key.value.__hash__:
                    seen.add((key.tag, key.value))

    _check_size(data, limits)
    try:
        value = yaml.load(data, Loader)
    except RecursionError:
        raise MalformedError(f"it is nested more than {limits.depth} levels deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise MalformedError(f"not YAML: {' '.join(str(error).split())}") from None
    _check_limits(value, limits)
    _check_text(value)
    return value


def _check_text(value: Any) -> None:
    """Raise MalformedError if a string contains half a surrogate pair, which UTF-8 cannot encode."""
    try:
        msgspec.json.encode(value)
    except UnicodeError:
        raise MalformedError("it contains a surrogate, which is not a character; write the character itself") from None


def _check_limits(value: Any, limits: Limits) -> None:
    """Raise MalformedError if `value` exceeds a limit or has a type that JSON lacks. The walk does not recurse."""
    waiting, count = [(value, 0)], 0
    while waiting:
        each, depth = waiting.pop()
        count += 1
        if depth > limits.depth:
            raise MalformedError(f"it is nested more than {limits.depth} levels deep")
        if count > limits.values:
            raise MalformedError(f"it contains more than {limits.values:,} values")
        if isinstance(each, dict):
            if wrong := [key for key in each if not isinstance(key, str)]:
                raise MalformedError(f"key {wrong[0]!r} is not a string; put it in quotes")
            waiting += [(item, depth + 1) for item in each.values()]
        elif isinstance(each, list):
            waiting += [(item, depth + 1) for item in each]
        elif isinstance(each, int) and not -(2 ** (limits.bits - 1)) <= each < 2**limits.bits:
            raise MalformedError(f"it contains a whole number that does not fit {limits.bits} bits")
        elif each is not None and not isinstance(each, bool | int | float | str):
            raise MalformedError(f"it contains a value of type {type(each).__name__} ({each}); put it in quotes")


def decode(cls: type[_T], data: Any, *, partial: bool = False) -> _T:
    """Convert parsed JSON to the dataclass `cls`, as the inverse of `dataclasses.asdict`.

    Args:
        cls: a dataclass, whose annotations are the schema, or another annotation such as ``tuple[Trial, ...]``.
        data: parsed JSON.
        partial: accept a document of another version: missing keys get their defaults, and unknown ones are ignored.

    Raises:
        MalformedError: a key is missing or unknown, or a value does not have its field's type.
    """
    try:
        decoded = msgspec.convert(data, type=cls)
    except RecursionError:
        raise MalformedError("it is nested too deep") from None
    except msgspec.ValidationError as error:
        raise MalformedError(_message(str(error), cls, data)) from None
    if not partial:
        _compare_keys(data, decoded, "")
    return decoded


def _message(text: str, cls: type, data: Any) -> str:
    """Rephrase a message of msgspec: ``profiles[0].max must be a list, not "16x128"``."""
    problem, _, place = text.partition(" - at `$")
    where = place.rstrip("`").lstrip(".")
    if match := _WRONG_TYPE.fullmatch(problem):
        expected = " or ".join(_NAMES.get(name, name) for name in match["expected"].split(" | "))
        actual = _shown(data, where) or _NAMES.get(match["actual"], match["actual"])
        return f"{where or 'the document'} must be {expected}, not {actual}"
    if match := _WRONG_LENGTH.fullmatch(problem):
        return f"{where} must have {match['expected']} entries, not {match['actual']}"
    if problem.startswith("Invalid enum value ") and (members := _members(cls, where)):
        return f"{where} must be one of {', '.join(members)}, not {_shown(data, where)}"
    if problem.startswith("Object missing required field "):
        return f"missing key{f' in {where}' if where else ''}: {problem.split('`')[1]}"
    return f"{where}: {_first_lower(problem)}" if where else _first_lower(problem)


def _members(cls: Any, where: str) -> list[str]:
    """Return the values that the enumeration or Literal at `where` allows; [] if the path does not lead to one."""
    for name in where.split("."):
        cls = typing.get_type_hints(cls).get(name) if is_dataclass(cls) else None
    if isinstance(cls, type) and issubclass(cls, Enum):
        return [str(each.value) for each in cls]
    return list(typing.get_args(cls)) if typing.get_origin(cls) is Literal else []


def _shown(data: Any, where: str) -> str:
    """Return the first 40 characters of the value at `where`, as JSON; "" if `where` contains a wildcard."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", where):
        try:
            data = data[int(index)] if index else data[key]
        except (LookupError, TypeError):
            return ""
    return msgspec.json.encode(data)[:40].decode("utf-8", "replace")


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _compare_keys(data: Any, decoded: Any, where: str) -> None:
    """Raise MalformedError if an object lacks a key of its dataclass or has an unknown one. msgspec accepts both."""
    if dataclasses.is_dataclass(decoded):
        within = f" in {where}" if where else ""
        names = {field.name for field in dataclasses.fields(decoded)}
        if missing := sorted(names - data.keys()):
            raise MalformedError(f"missing key{within}: {', '.join(missing)}")
        if unknown := sorted(data.keys() - names):
            raise MalformedError(f"unknown key{within}: {', '.join(unknown)}")
        for name in names:
            _compare_keys(data[name], getattr(decoded, name), f"{where}.{name}" if where else name)
    elif isinstance(decoded, dict):
        for key, value in decoded.items():
            _compare_keys(data[key], value, f"{where}.{key}" if where else key)
    elif isinstance(decoded, list | tuple):
        for index, (value, item) in enumerate(zip(data, decoded, strict=True)):
            _compare_keys(value, item, f"{where}[{index}]")
