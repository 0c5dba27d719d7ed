"""Protobuf's text format, as far as a config.pbtxt needs it.

https://protobuf.dev/reference/protobuf/textformat-spec/ . Writing it needs no protobuf, so the light install can; tests parse
what comes out into tritonclient's own ``ModelConfig``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Message = Mapping[str, Any]
"""Field -> a value, a message, or a list of either (a repeated field). None leaves a field out."""


class Symbol(str):
    """The name of an enum's value, which is written without quotes."""


def entries(values: Mapping[str, Any]) -> list[Message]:
    """Return a map field, whose entries are messages of a key and a value."""
    return [{"key": key, "value": value} for key, value in values.items()]


def render(message: Message) -> str:
    """Return `message` as text, a field a line, with a newline at its end."""
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
    # JSON's quotes and escapes are also the text format's; other characters it takes as UTF-8.
    return json.dumps(value, ensure_ascii=False)
