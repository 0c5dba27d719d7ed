"""``manifest.json``: what an engine folder holds, how it was made, and the hashes that prove it is whole.

An engine folder can be copied to another machine and used with nothing else; the manifest is what every command reads
first. Its keys are the fields of `Manifest`, no more and no fewer: a file of an older or newer format says so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import q8trt
from q8trt.engine.shapes import Shape, ShapeProfile, largest
from q8trt.errors import ConfigError, EngineError
from q8trt.files import MalformedError, decode, parse_json, sha256, write_json

MANIFEST_FORMAT = 2
MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
PLAN_FILE = "model.plan"
#: What every score of the sentence pairs that q8trt makes itself is labelled with.
SAMPLE_LABEL = "built-in sample, not GLUE"
_BUILD = "python build_engine.py --int8"


@dataclass(frozen=True)
class TaskInfo:
    """What the model answers: a GLUE task's `name`, `labels` (in the order of the logits) and `main_metric`."""

    name: str
    labels: list[str]
    is_regression: bool
    is_pair: bool
    main_metric: str


@dataclass(frozen=True)
class ModelInfo:
    """The encoder; `max_seq_length` is the length in tokens at which it was fine-tuned."""

    name: str
    model_type: str
    num_labels: int
    max_position_embeddings: int
    pad_token_id: int
    max_seq_length: int


@dataclass(frozen=True)
class BackendInfo:
    """What built the plan: `name` and `version` of the backend, `sm_targets` as compute capabilities ("8.9")."""

    name: str
    version: str
    sm_targets: list[str]


@dataclass(frozen=True)
class FileInfo:
    """One file of the folder: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Manifest:
    """An engine folder's description; each field is a key of ``manifest.json``.

    Attributes:
        precision: "fp32", "fp16", "int8" or "int8+fp16".
        recipe: the quantization recipe as plain data; None for a model without quantizers.
        inputs: the names of the model's inputs, in its order; each is integer (batch, sequence).
        opset: the ONNX opset of ``model.onnx``.
        stage: the stage of the run that the model comes from: "fp32", "ptq" or "int8"; "" where there is none.
        profiles: the plan's optimization profiles, shortest sequences first; [] without a plan.
        backend: what built the plan; None without a plan.
        metrics: numbers under nested names, such as {"dev": {"pearson": 0.8739}}.
        report: what is known of the engine before it runs: "is_sample" (whether `metrics` are of the built-in sample),
            "engine" (`EngineReport`, as read back), "build" (seconds, memory, determinism), "forecast" (the linter's, of the
            graph); {} without a plan.
        files: every file of the folder but the manifest; filled in by `write_manifest`.
        created: ISO 8601, UTC.
        q8trt_version: the version of q8trt that wrote the folder.
    """

    task: TaskInfo
    model: ModelInfo
    precision: str
    recipe: dict[str, Any] | None
    inputs: list[str]
    opset: int
    stage: str = ""
    profiles: list[ShapeProfile] = field(default_factory=list)
    backend: BackendInfo | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileInfo] = field(default_factory=dict)
    created: str = field(default_factory=_now)
    q8trt_version: str = q8trt.__version__
    format: int = MANIFEST_FORMAT

    @property
    def largest_shape(self) -> Shape | None:
        """The largest batch and the longest sequence that the plan takes; None without a plan."""
        return largest(self.profiles) if self.profiles else None


def write_manifest(folder: str | Path, manifest: Manifest) -> Manifest:
    """Hash the files of `folder` (no hidden ones, no subfolders) and write ``manifest.json``: the last step of a build.

    Returns:
        `manifest` with its `files` filled in.

    Raises:
        EngineError: the folder is missing or cannot be written, or a metric is not a finite number.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EngineError(f"engine folder {folder} does not exist")
    files = {
        path.name: FileInfo(sha256(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE and not path.name.startswith(".")
    }
    manifest = dataclasses.replace(manifest, files=files)
    try:
        write_json(folder / MANIFEST_FILE, dataclasses.asdict(manifest))
    except (OSError, TypeError, ValueError) as error:
        raise EngineError(f"cannot write {folder / MANIFEST_FILE}: {error}") from error
    return manifest


def load_manifest(folder: str | Path, verify: bool = True) -> Manifest:
    """Read ``manifest.json`` of an engine folder.

    Args:
        folder: what `build_engine.py` wrote.
        verify: also check each file's presence, size and SHA-256 (reads the whole folder once).

    Raises:
        EngineError: the folder or its manifest is missing, the manifest is malformed or of another format, or a file is
            missing, truncated or changed.
    """
    folder = Path(folder)
    if folder.is_file():
        raise EngineError(
            f"{folder} is a file, expected an engine folder; an archive of `q8trt pack` is unpacked first: "
            f"q8trt unpack {folder}"
        )
    if not folder.is_dir():
        raise EngineError(f"engine folder {folder} does not exist; build it with `{_BUILD}`")
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise EngineError(f"{folder} has no {MANIFEST_FILE}, so it is no engine folder; build one with `{_BUILD}`")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    manifest = parse_manifest(path, text)
    for name, info in manifest.files.items() if verify else ():
        _verify(folder / name, info)
    return manifest


def parse_manifest(where: str | Path, text: bytes) -> Manifest:
    """The manifest in the JSON `text`; `where` names it in errors.

    Raises:
        EngineError: it is no JSON, malformed, of another format, or names a file outside the folder.
    """
    try:
        data = parse_json(text)
    except MalformedError as error:
        raise EngineError(f"{where} cannot be read: {error}") from error
    manifest = _parse(where, data)
    for name in manifest.files:
        if Path(name).name != name or name in {"", ".", ".."} or "\\" in name:
            raise EngineError(f"{where}: file name {name!r} leaves the folder")
    return manifest


def _verify(path: Path, expected: FileInfo) -> None:
    again = f"it is truncated or was replaced; rebuild it with `{_BUILD}`"
    if not path.is_file():
        raise EngineError(f"{path} is missing, but the manifest lists it; rebuild it with `{_BUILD}`")
    size = path.stat().st_size
    if size != expected.bytes:
        raise EngineError(f"{path} is {size:,} bytes, the manifest says {expected.bytes:,}: {again}")
    digest = sha256(path)
    if digest != expected.sha256:
        raise EngineError(
            f"{path} has SHA-256 {digest[:12]}…, the manifest says {expected.sha256[:12]}…: "
            f"it was changed or replaced; rebuild it with `{_BUILD}`"
        )


def _parse(path: str | Path, data: Any) -> Manifest:
    found = data.get("format") if isinstance(data, dict) else None
    if type(found) is int and found > MANIFEST_FORMAT:
        raise EngineError(
            f"{path} has format {found}, this q8trt ({q8trt.__version__}) reads up to {MANIFEST_FORMAT}; upgrade q8trt"
        )
    if type(found) is int and found < MANIFEST_FORMAT:
        raise EngineError(f"{path} has format {found}, of an older q8trt; rebuild the engine with `{_BUILD}`")
    try:
        return decode(Manifest, data)
    except (MalformedError, ConfigError) as error:
        raise EngineError(f"{path}: {error}") from None
