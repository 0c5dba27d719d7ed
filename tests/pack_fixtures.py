"""A small engine folder to pack, and archives that no `q8trt pack` would make."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from q8trt.engine.manifest import BackendInfo, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import digest_of, write_manifest
from q8trt.engine.shapes import ShapeProfile
from q8trt.quantization.precision import Precision

MANIFEST = Manifest(
    task=TaskInfo("MRPC", ["not_equivalent", "equivalent"], False, True, "f1"),
    model=ModelInfo("tiny", "bert", 2, 512, 0, 128),
    precision=Precision.INT8,
    recipe={"name": "linear", "description": "The six linears | of each layer.", "sites": {}},
    inputs=["input_ids", "attention_mask"],
    opset=20,
    stage="ptq",
    profiles=[ShapeProfile((1, 1), (16, 64), (32, 64))],
    backend=BackendInfo("tensorrt_rtx", "1.7.1.116", ["8.6", "8.9"]),
    metrics={"torch_fp32": {"dev": {"f1": 0.91, "accuracy": 0.875}}, "torch_ptq": {"dev": {"f1": 0.9}}},
    created="2026-11-01T10:00:00+00:00",
)
FILES = {
    "model.onnx": b"onnx" * 100,
    "model.plan": bytes(range(256)) * 8,
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
}


def write_engine(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    write_manifest(folder, replace(MANIFEST, **changes))
    return folder


Change = Callable[[dict[str, bytes]], None]


def forge(
    folder: Path, path: Path, change: Change | None = None, member: Callable[[zipfile.ZipInfo], None] | None = None,
    compress: int = zipfile.ZIP_STORED,
) -> Path:  # fmt: skip
    """An archive of `folder` as an attacker makes one: contents changed first, then its hashes made to agree.

    `change` edits the members by name, `member` each member's directory entry.
    """
    members = {each.name: each.read_bytes() for each in sorted(folder.iterdir())}
    members["MODEL_CARD.md"] = b"# card\n"
    if change:
        change(members)
    if "SHA256SUMS" not in members:
        sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in members.items()]
        members["SHA256SUMS"] = "".join(sums).encode()
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = (stat.S_IFREG | 0o644) << 16, compress
            if member:
                member(info)
            archive.writestr(info, data)
    return path


def listed(name: str, data: bytes) -> Change:
    """Adds a file that the manifest lists too."""

    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest["digest"] = digest_of(manifest)
        members["manifest.json"] = json.dumps(manifest).encode()
        members[name] = data

    return change
