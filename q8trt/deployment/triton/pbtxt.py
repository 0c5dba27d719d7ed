"""Protobuf's text format, limited to the needs of a config.pbtxt.

The format is specified at https://protobuf.dev/reference/protobuf/textformat-spec/ . Tests parse the text with tritonclient's
``ModelConfig``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Message = Mapping[str, Any]
"""Field -> a value, a message, or a list of either (a repeated field). A field that is None is not written."""


class Symbol(str):
    """A value of an enum, written as its name without quotes."""


def entries(values: Mapping[str, Any]) -> list[Message]:
    """Return a map field: a list of messages with a key and a value."""
    return [{"key": key, "value": value} for key, value in values.items()]


def render(message: Message) -> str:
    """Return `message` as text with one field on each line, and a newline at the end."""
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Mapping):
                yield f"{name} {{"
                yield from (f"  {line}" for line in _lines(each))
                yield "}"
            elif each is not None:
                yield f"{name}: {_scalar(each)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Symbol):
        return str(value)
    # The text format has the quotes and escapes of JSON. Other characters are UTF-8.
    return json.dumps(value, ensure_ascii=False)
