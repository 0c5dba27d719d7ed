"""The names in an engine folder that q8trt wrote: those that a new build may replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8trt.engine.manifest import MANIFEST_FILE, ONNX_FILE, PLAN_FILE
from q8trt.files import FolderKind, MalformedError, read_json

#: Names that builds give their files, the tokenizer's included: these tell a folder whose manifest is damaged.
_USUAL = frozenset({
    MANIFEST_FILE, ONNX_FILE, PLAN_FILE, f"{ONNX_FILE}.data", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
})  # fmt: skip


def _listed(folder: Path) -> frozenset[str] | None:
    """Return the names that the manifest of `folder` lists, and its own; None where it is no manifest of q8trt."""
    try:
        manifest: Any = read_json(folder / MANIFEST_FILE)
    except OSError:
        return None
    except MalformedError:  # damaged, and an engine folder all the same if it holds what engine folders hold
        return _USUAL if (folder / ONNX_FILE).is_file() else None
    names = manifest.get("files") if isinstance(manifest, dict) and "q8trt_version" in manifest else None
    return frozenset({MANIFEST_FILE, *names}) if isinstance(names, dict) else None


ENGINE_FOLDER = FolderKind(
    "an engine folder",
    _listed,
    companions=(
        "MODEL_CARD.md", "SHA256SUMS", ".runtime-*.cache", "benchmark.json", "benchmark.md", "benchmark.html",
        "compare.json", "compare.html", "parity.json", "gpu-check.json", "gpu-check.html",
    ),
)  # fmt: skip
