"""``tokenizer.json`` of an engine folder or a checkpoint, opened with limits because it may be damaged or untrusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8trt.files import Limits, MalformedError, parse_json, read_json, read_limited
from q8trt.tasks.data.encoding import EncodingError, guarded

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
#: The largest public tokenizers, with a vocabulary of 260,000, have 35 MiB.
_LIMITS = Limits(size=128 * 2**20, depth=100, values=20_000_000)
_PROBE = "A short text, and 1 number."


def open_tokenizer(path: str | Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a ``tokenizer.json``, after a test with a short text.

    Raises:
        MalformedError: the file is not JSON, not a tokenizer, too large or too deep, or it fails to encode.
        OSError: the file is missing or cannot be read.
    """
    from tokenizers import Tokenizer

    data = read_limited(path, _LIMITS)
    _check_template(parse_json(data, _LIMITS))  # parsed here first, because tokenizers has no limits
    try:
        tokenizer: Any = guarded(Tokenizer.from_str, data.decode("utf-8"))
        tokenizer.no_truncation()
        tokenizer.no_padding()  # the file may pad to any number of tokens
        guarded(tokenizer.encode, _PROBE)
    except EncodingError as error:
        raise MalformedError(str(error)) from None
    return tokenizer


def _check_template(document: Any) -> None:
    """Raise MalformedError if a template names a special token that it does not define, at which tokenizers panics."""
    waiting = [document.get("post_processor")] if isinstance(document, dict) else []
    while waiting:
        state = waiting.pop()
        if not isinstance(state, dict):
            continue
        if isinstance(state.get("processors"), list):
            waiting += state["processors"]
        if isinstance(state.get("special_tokens"), dict):
            for key in ("single", "pair"):
                for piece in state[key] if isinstance(state.get(key), list) else []:
                    token = piece.get("SpecialToken") if isinstance(piece, dict) else None
                    name = token.get("id") if isinstance(token, dict) else None
                    if isinstance(name, str) and name not in state["special_tokens"]:
                        raise MalformedError(f"post_processor.{key} names {name[:40]!r}, which special_tokens lacks")


def truncation_side(folder: str | Path) -> str:
    """Return the side on which the tokenizer of `folder` truncates: "right", unless ``tokenizer_config.json`` has "left".

    Raises:
        MalformedError: the file is not JSON, or the side is neither "right" nor "left".
        OSError: the file cannot be read.
    """
    path = Path(folder) / TOKENIZER_CONFIG
    settings = read_json(path) if path.exists() else {}
    side = settings.get("truncation_side", "right") if isinstance(settings, dict) else None
    if side not in ("right", "left"):
        raise MalformedError(f"truncation_side is {side!r}, expected 'right' or 'left'")
    return str(side)
