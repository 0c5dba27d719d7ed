"""Engine folders: the search for them, the run of each, and the names of files that q8trt writes to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q8trt.console.commands import command
from q8trt.engine.manifest import MANIFEST_FILE, ONNX_FILE, PLAN_FILE, Manifest
from q8trt.engine.manifest_file import load_manifest
from q8trt.errors import ConfigError
from q8trt.files import FolderKind, MalformedError, decode, read_json
from q8trt.quantization.precision import Precision
from q8trt.runs.run import RUN_FILE, Run, runs_dir_option
from q8trt.runs.search import is_sound

#: Stage of a run -> the name of its rows in reports, in the order of the rows.
_NAMES = {"fp32": "FP32", "ptq": "PTQ", "int8": "QAT", "": ""}


@dataclass(frozen=True)
class EngineFolder:
    """An engine folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The stage of the model, if it is known, and the engine's precision, such as ``"QAT INT8"``."""
        precision = self.manifest.precision.label
        return precision if self.manifest.stage == "fp32" else f"{_NAMES[self.manifest.stage]} {precision}".strip()

    @property
    def run(self) -> Run | None:
        """Return the run that contains the engine folder; None if it is not in a run."""
        return Run(self.folder.parent) if (self.folder.parent / RUN_FILE).is_file() else None


def find_engines(folders: Sequence[EngineFolder | str | Path], runs_dir: str | Path) -> list[EngineFolder]:
    """Return the engines in `folders`, in order. If there are none, return those of the run with the newest engine.

    An `EngineFolder` is returned as it is. A run that cannot be read is skipped. The engines of a run are sorted by stage and
    precision.

    Raises:
        ConfigError: `folders` is empty, and no run under `runs_dir` has an engine.
        EngineError: a folder is damaged or is not an engine folder.
    """
    if folders:
        return [
            each if isinstance(each, EngineFolder) else EngineFolder(Path(each), load_manifest(each))
            for each in folders
        ]
    for run in _by_newest_engine(Path(runs_dir)):
        if (run / RUN_FILE).is_file() and not is_sound(Run(run)):
            continue
        engines = [EngineFolder(folder, load_manifest(folder)) for folder in engine_folders(run)]
        return sorted(engines, key=_order)
    build = command("build-engine", "--int8", *runs_dir_option(runs_dir))
    raise ConfigError(f"no engine under {runs_dir}/; build one: {build}")


def _order(engine: EngineFolder) -> tuple[int, int, str]:
    """Return the sort key of an engine among those of its run: FP32 and FP16 first, QAT last."""
    stage, precision = engine.manifest.stage, engine.manifest.precision
    return list(_NAMES).index(stage), list(Precision).index(precision), engine.folder.name


def engine_folders(run: Path) -> list[Path]:
    """Return the engine folders in `run`. Hidden folders are builds that were killed, not engines."""
    return [folder for folder in run.glob("engine*") if (folder / MANIFEST_FILE).is_file()]


def _by_newest_engine(runs_dir: Path) -> list[Path]:
    """Return the folders under `runs_dir` that contain engines. The folder with the newest engine is first."""
    newest = {}
    for run in runs_dir.glob("*"):
        if not run.name.startswith(".") and (folders := engine_folders(run)):
            newest[run] = max((folder / MANIFEST_FILE).stat().st_mtime for folder in folders)
    return sorted(newest, key=lambda run: newest[run], reverse=True)


#: Names of the files that builds write. They identify an engine folder whose manifest is damaged.
_USUAL = frozenset({
    MANIFEST_FILE, ONNX_FILE, PLAN_FILE, f"{ONNX_FILE}.data", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
})  # fmt: skip


@dataclass(frozen=True)
class _Listing:
    """The part of a manifest that shows which files q8trt wrote."""

    q8trt_version: Any
    files: dict[str, Any]


def _listed(folder: Path) -> frozenset[str] | None:
    """Return the names that the manifest of `folder` lists, and the manifest's name; None without a manifest of q8trt."""
    try:
        data = read_json(folder / MANIFEST_FILE)
    except OSError:
        return None
    except MalformedError:  # damaged, but an engine folder if it also has a graph
        return _USUAL if (folder / ONNX_FILE).is_file() else None
    try:
        return frozenset({MANIFEST_FILE, *decode(_Listing, data, partial=True).files})
    except MalformedError:
        return None


ENGINE_FOLDER = FolderKind(
    "an engine folder",
    _listed,
    companions=(
        "MODEL_CARD.md", "SHA256SUMS", ".runtime-*.cache", "benchmark.json", "benchmark.md", "benchmark.html",
        "compare.json", "compare.html", "parity.json", "gpu-check.json", "gpu-check.html",
    ),
)  # fmt: skip
