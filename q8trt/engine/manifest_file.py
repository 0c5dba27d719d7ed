"""``manifest.json`` on disk. It is the last file that a build writes, and the first one that other commands read.

Formats 2 to 4 are still read. Format 4 lacks fields of the head. Formats 2 and 3 lack the head. Format 2 also lacks the columns,
the activation and the digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import q8trt
from q8trt.console.commands import command
from q8trt.engine.manifest import MANIFEST_FILE, MANIFEST_FORMAT, FileInfo, Manifest, contradictions, head_of_labels
from q8trt.engine.rebuild import build_command, rebuild_command
from q8trt.errors import ConfigError, EngineError
from q8trt.files import Limits, MalformedError, decode, parse_json, read_limited, sha256, write_json
from q8trt.runs.run import RUN_FILE, STAGES
from q8trt.tasks.heads import with_head_fields

_LIMITS = Limits(size=64 * 2**20)


def write_manifest(folder: str | Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json``, the last step of a build, and return `manifest` with its `files` and `digest`.

    `files` lists the files of `folder`, without hidden files and subfolders.

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
        manifest = dataclasses.replace(manifest, digest=digest_of(dataclasses.asdict(manifest)))
        write_json(folder / MANIFEST_FILE, dataclasses.asdict(manifest))
    except (OSError, TypeError, ValueError) as error:
        raise EngineError(f"cannot write {folder / MANIFEST_FILE}: {error}") from error
    return manifest


def digest_of(data: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's JSON data without the key ``digest``. Any edit of a fact changes it.

    Raises ValueError if a number is NaN or infinite, and TypeError for values that are not JSON.
    """
    facts = json.loads(json.dumps({key: value for key, value in data.items() if key != "digest"}, allow_nan=False))
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def load_manifest(folder: str | Path, verify: bool = True) -> Manifest:
    """Read ``manifest.json`` of an engine folder. `verify` also checks each file's size and SHA-256 (reads all files once).

    Raises:
        EngineError: the folder or its manifest is missing, the manifest is not valid (see `parse_manifest`), or, with `verify`,
            a file is missing, truncated or changed.
    """
    folder = Path(folder)
    if folder.is_file() and folder.suffix in (".plan", ".onnx"):
        raise EngineError(f"{folder} is a file, expected an engine folder; give {folder.parent}")
    if folder.is_file():
        raise EngineError(
            f"{folder} is a file, expected an engine folder; unpack an archive of `q8trt pack` first: "
            f"{command('unpack', folder)}"
        )
    if not folder.is_dir():
        raise EngineError(f"engine folder {folder} does not exist; build it with {build_command(folder)}")
    path = folder / MANIFEST_FILE
    if not path.is_file():
        if inside := sorted(each.parent for each in folder.glob(f"engine*/{MANIFEST_FILE}")):
            raise EngineError(f"{folder} is a run, not an engine folder; give {' or '.join(map(str, inside))}")
        if beside := _engines_beside(folder):
            raise EngineError(
                f"{folder} is a checkpoint of a run, not an engine folder; give {' or '.join(map(str, beside))}"
            )
        raise EngineError(
            f"{folder} has no {MANIFEST_FILE}, so it is not an engine folder; build one with {build_command(folder)}"
        )
    try:
        text = read_limited(path, _LIMITS)
    except (OSError, MalformedError) as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    manifest = parse_manifest(path, text)
    for name, info in manifest.files.items() if verify else ():
        if problem := file_problem(folder / name, info):
            raise EngineError(f"{problem}; rebuild it with {rebuild_command(folder)}")
    return manifest


def _engines_beside(folder: Path) -> list[Path]:
    """Return the engine folders of the run that contains the checkpoint `folder`; [] if it is not a run's checkpoint."""
    run = folder.parent
    if folder.name not in STAGES or not (run / RUN_FILE).is_file():
        return []
    return sorted(each.parent for each in run.glob(f"engine*/{MANIFEST_FILE}"))


def parse_manifest(where: str | Path, text: bytes) -> Manifest:
    """Return the manifest in the JSON `text`. `where` names it in errors.

    Raises:
        EngineError: it is not JSON, is malformed or of another format, contradicts itself, was edited, or names a file outside
            the folder.
    """
    try:
        data = parse_json(text, _LIMITS)
    except MalformedError as error:
        raise EngineError(f"{where} cannot be read: {error}") from error
    manifest = _parse(where, data)
    for name in manifest.files:
        if Path(name).name != name or name in {"", ".", ".."} or "\\" in name:
            raise EngineError(f"{where}: file name {name!r} leaves the folder")
    return manifest


def file_problem(path: Path, expected: FileInfo) -> str:
    """Return the difference between a file and its entry in the manifest, in words; "" if there is none."""
    if not path.is_file():
        return f"{path} is missing, but the manifest lists it"
    if (size := path.stat().st_size) != expected.bytes:
        return f"{path} is {size:,} bytes, the manifest says {expected.bytes:,}: it was changed or replaced"
    if (digest := sha256(path)) != expected.sha256:
        return (
            f"{path} has SHA-256 {digest[:12]}…, the manifest says {expected.sha256[:12]}…: it was changed or replaced"
        )
    return ""


def _parse(path: str | Path, data: Any) -> Manifest:
    written = data.get("format") if isinstance(data, dict) else None
    if isinstance(data, dict) and not {"format", "q8trt_version", "files"} & data.keys():
        raise EngineError(f"{path} is not a manifest of q8trt; give an engine folder that q8trt built")
    if type(written) is int and written > MANIFEST_FORMAT:
        raise EngineError(
            f"{path} has format {written}, this q8trt ({q8trt.__version__}) reads up to {MANIFEST_FORMAT}; upgrade q8trt"
        )
    if type(written) is int and written < 2:
        raise EngineError(f"{path} has format {written}, of an older q8trt; rebuild the engine{_with(path)}")
    try:
        manifest = decode(Manifest, _upgraded(data, written))
        _ = manifest.record
    except (MalformedError, ConfigError) as error:
        raise EngineError(f"{path}: {error}") from None
    if contradiction := next(contradictions(manifest), None):
        raise EngineError(f"{path} contradicts itself: {contradiction}; rebuild the engine{_with(path)}")
    if written != 2 and manifest.digest != digest_of(data):
        raise EngineError(
            f"{path} was edited or damaged: its digest does not match; restore it, or rebuild the engine{_with(path)}"
        )
    return manifest


def _with(manifest: str | Path) -> str:
    """Return " with" and the command that builds the folder of a manifest; "" if it has no path, as in an archive."""
    return f" with {rebuild_command(manifest.parent)}" if isinstance(manifest, Path) else ""


def _upgraded(data: Any, written: Any) -> Any:
    """Return the data of a manifest of an earlier format in the current format.

    Raises MalformedError if a manifest of format 2 has a key of format 3, because it has no digest that covers the key.
    """
    if written == 2:
        data = _with_columns(data)
    if written in (2, 3):
        task = data.get("task")
        labels = task.get("labels") if isinstance(task, dict) else None
        head = head_of_labels(labels if isinstance(labels, list) else ())
        data = {**data, "format": MANIFEST_FORMAT, "head": dataclasses.asdict(head)}
    if written == 4:
        data = {**data, "format": MANIFEST_FORMAT, "head": with_head_fields(data.get("head"))}
    return data


def _with_columns(data: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of format 2 with the keys of format 3."""
    task = data.get("task")
    later = {"text_columns": [], "activation": "identity"}
    present = [*({"digest"} & data.keys()), *(later.keys() & task.keys() if isinstance(task, dict) else ())]
    if present:
        raise MalformedError(f"unknown key in format 2: {', '.join(sorted(present))}")
    return {**data, "digest": "", "task": {**task, **later} if isinstance(task, dict) else task}
