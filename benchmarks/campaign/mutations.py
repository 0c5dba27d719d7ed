"""Mutations that areas share: of bytes, and of JSON documents."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

#: In the place of any value of a JSON document.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**62, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "0", "1", "x",
    "../..", "/etc/passwd", "\x1b[31m", "\ud800", "\u0000", "<b>", "a" * 5000, [], {}, [[]], [None], {"x": 1},
)  # fmt: skip


def flipped(data: bytes, random: Random, count: int = 1) -> bytes:
    """Return `data` with a bit changed at `count` places."""
    changed = bytearray(data)
    for _ in range(count):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def truncated(data: bytes, random: Random) -> bytes:
    """Return the first bytes of `data`, at least one fewer."""
    return data[: random.randrange(len(data))]


def spliced(data: bytes, random: Random) -> bytes:
    """Return `data` with a run of bytes removed, repeated, zeroed or made random."""
    start = random.randrange(len(data))
    end = min(len(data), start + random.choice((1, 4, 16, 256, 4096)))
    piece = data[start:end]
    new = (b"", piece * 2, bytes(len(piece)), random.randbytes(len(piece)), b"\xff" * len(piece))[random.randrange(5)]
    return data[:start] + new + data[end:]


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON document, the document itself first."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of `document` with `value` at `path`."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    _parent(changed, path)[path[-1]] = value
    return changed


def without(document: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy of `document` without what is at `path`."""
    changed = copy.deepcopy(document)
    del _parent(changed, path)[path[-1]]
    return changed


def _parent(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def json_bytes(document: Any) -> bytes:
    """Write `document` as a careless writer does: NaN, infinity and lone surrogates included."""
    return json.dumps(document).encode()


def json_mutations(document: Any, random: Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` broken versions of a JSON document, each with a name: other values, missing keys, broken bytes."""
    everywhere = list(places(document))
    for number in range(count):
        path = random.choice(everywhere)
        where = ".".join(map(str, path)) or "document"
        kind = random.random()
        if kind < 0.6:
            value = random.choice(VALUES)
            yield f"value: {number} {where} = {repr(value)[:30]}", json_bytes(replaced(document, path, value))
        elif kind < 0.75 and path:
            yield f"missing: {number} {where}", json_bytes(without(document, path))
        elif kind < 0.8:
            deep = b"[" * 100_000 if random.random() < 0.5 else b'{"a":' * 10_000
            yield f"deep: {number} {where}", json_bytes(replaced(document, path, "DEEP")).replace(b'"DEEP"', deep)
        elif kind < 0.85:
            digits = b"9" * random.choice((400, 5000, 100_000))
            yield (
                f"digits: {number} {where}",
                json_bytes(replaced(document, path, "DIGITS")).replace(b'"DIGITS"', digits),
            )
        else:
            mutate = random.choice((flipped, truncated, spliced))
            yield f"{mutate.__name__}: {number}", mutate(json_bytes(document), random)
