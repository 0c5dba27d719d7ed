"""Find engine folders, and the run that each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q8trt.console.commands import command
from q8trt.engine.manifest import MANIFEST_FILE, Manifest, load_manifest
from q8trt.errors import ConfigError
from q8trt.runs.run import RUN_FILE, Run, runs_dir_option
from q8trt.runs.search import is_sound

#: Stage of a run -> what its rows are called, in the order in which a reader compares them.
_NAMES = {"fp32": "FP32", "ptq": "PTQ", "int8": "QAT", "": ""}


@dataclass(frozen=True)
class Engine:
    """An engine folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """``"QAT INT8"``: how the model came about, where that is known, and the engine's precision."""
        precision = self.manifest.precision.upper()
        return precision if self.manifest.stage == "fp32" else f"{_NAMES[self.manifest.stage]} {precision}".strip()

    @property
    def run(self) -> Run | None:
        """Return the run that holds the engine folder, or None."""
        return Run(self.folder.parent) if (self.folder.parent / RUN_FILE).is_file() else None


def find_engines(folders: Sequence[str], runs_dir: str) -> list[Engine]:
    """Return the engines given, or those of the run whose engine is the newest. A run that cannot be read is skipped.

    Raises:
        ConfigError: no engine was built yet.
        EngineError: a folder is damaged or is no engine.
    """
    if folders:
        return [Engine(Path(folder), load_manifest(folder)) for folder in folders]
    for run in _by_newest_engine(Path(runs_dir)):
        if (run / RUN_FILE).is_file() and not is_sound(Run(run)):
            continue
        engines = [Engine(folder, load_manifest(folder)) for folder in _engine_folders(run)]
        return sorted(engines, key=lambda engine: (list(_NAMES).index(engine.manifest.stage), engine.folder.name))
    build = command("build-engine", "--int8", *runs_dir_option(runs_dir))
    raise ConfigError(f"no engine under {runs_dir}/; build one: {build}")


def _engine_folders(run: Path) -> list[Path]:
    """Return the engine folders in `run`. Hidden folders are builds that were killed, not engines."""
    return [folder for folder in run.glob("engine*") if (folder / MANIFEST_FILE).is_file()]


def _by_newest_engine(runs_dir: Path) -> list[Path]:
    """Return the folders under `runs_dir` that hold engines, the one whose engine is the newest first."""
    newest = {}
    for run in runs_dir.glob("*"):
        if not run.name.startswith(".") and (folders := _engine_folders(run)):
            newest[run] = max((folder / MANIFEST_FILE).stat().st_mtime for folder in folders)
    return sorted(newest, key=lambda run: newest[run], reverse=True)
