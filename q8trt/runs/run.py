"""Run folders: the record and the checkpoints of a training or calibration.

runs/<name>/
  run.json           configuration, provenance, and for each stage: scores, steps, seconds per step
  fp32/ ptq/ int8/   checkpoints: fine-tuned, calibrated, quantization-aware fine-tuned
  checkpoints/       of the Trainer, for --resume
  logs/              TensorBoard
  engine*/           engines built from the run
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from q8trt import files
from q8trt.console.commands import command
from q8trt.console.options import option
from q8trt.errors import ConfigError
from q8trt.quantization.trial import InFloat, Trial

RUN_FILE = "run.json"
#: The report of the run's engines.
REPORT_FILE = "benchmark.json"
#: Folder of runs, in the current folder.
RUNS_DIR = "runs"
STAGES = ("fp32", "ptq", "int8")
StageName = Literal["fp32", "ptq", "int8"]
#: Newest format of run.json.
FORMAT = 1
#: Names that a run writes into its folder.
WRITTEN = (RUN_FILE, *STAGES, "checkpoints", "logs")
#: Patterns of names in a run folder of which a killed writer may have left temporary files.
_SWEPT = (*WRITTEN, "engine*", "benchmark.*", "parity.json", "sensitivity.*", "compare.*")


@dataclass(frozen=True)
class StageRecord:
    """A finished stage.

    Attributes:
        checkpoint: the folder, relative to the run or absolute.
        scores: development split -> metric -> value.
        details: other JSON-ready facts, such as the number of steps and seconds per step.
    """

    checkpoint: str
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = Path(self.checkpoint)
        if not self.checkpoint.isprintable() or (not path.is_absolute() and (".." in path.parts or not path.parts)):
            raise ValueError(f"the checkpoint {self.checkpoint[:80]!r} is not a folder inside the run")

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of run.json, in which the details are keys of the entry."""
        scores = {"scores": self.scores} if self.scores else {}
        return {"checkpoint": self.checkpoint, **scores, **self.details}


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    Attributes:
        format: version of the file's format.
        task: name of the task.
        created: time in ISO 8601, UTC.
        folder: absolute path of the run when it was made; "" if unknown.
        provenance: command, commit, versions, hardware and date.
        config: the configuration, from `FinetuneConfig.to_dict`.
        data: record of the rows, see `q8trt.tasks.data.record`; None if unknown.
        stages: the finished stages.
        engines: the engines that `q8trt quantize` builds from the run, from `EnginePlan.to_dict`; None for other runs.
        more: keys of other versions.
    """

    format: int
    task: str
    created: str
    folder: str
    provenance: dict[str, Any]
    config: dict[str, Any]
    data: dict[str, Any] | None
    stages: dict[StageName, StageRecord]
    engines: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of run.json, which `parse_record` reads."""
        data = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "more"}
        return {**data, **self.more, "stages": {name: stage.to_dict() for name, stage in self.stages.items()}}


def parse_record(data: Any) -> RunRecord:
    """Return the record in JSON data.

    Raises:
        MalformedError: a key is missing, a value has the wrong type, or the format is newer than this version.
    """
    if not isinstance(data, dict):
        raise files.MalformedError("the document must be an object")
    grouped = _grouped(data, RunRecord, "more")
    if isinstance(stages := data.get("stages"), dict):
        grouped["stages"] = {name: _grouped(entry, StageRecord, "details") for name, entry in stages.items()}
    record = files.decode(RunRecord, grouped)
    if not 1 <= record.format <= FORMAT:
        raise files.MalformedError(f"format {record.format}, expected {FORMAT} at most; upgrade q8trt")
    return record


#: Values of keys that runs of earlier versions lack.
_DEFAULTS: Mapping[str, Any] = {
    "task": "", "created": "", "folder": "", "provenance": {}, "data": None, "scores": {}, "engines": None
}  # fmt: skip


def _grouped(data: Any, cls: type, rest: str) -> Any:
    """Return `data` with the keys that `cls` lacks moved to the key `rest`; data that are no object are returned unchanged."""
    if not isinstance(data, dict):
        return data
    names = {each.name for each in dataclasses.fields(cls)} - {rest}
    missing = {name: value for name, value in _DEFAULTS.items() if name in names and name not in data}
    return {
        **{name: value for name, value in data.items() if name in names},
        **missing,
        rest: {name: value for name, value in data.items() if name not in names},
    }


@dataclass(frozen=True)
class Run:
    """A run, stored in the folder `path`."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    @property
    def scores(self) -> dict[str, dict[str, dict[str, float]]]:
        """Finished stage -> development split -> metric -> value."""
        return {name: stage.scores for name, stage in self.record.stages.items()}

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The candidates that calibration measured, in order; empty if it measured none.

        Raises:
            ConfigError: run.json is damaged.
        """
        return self._of_calibration("trials", tuple[Trial, ...], [])

    @property
    def in_float(self) -> InFloat | None:
        """The operations that calibration left in floating point, or None. Raises ConfigError if run.json is damaged."""
        return self._of_calibration("in_float", InFloat | None, None)

    def _of_calibration(self, name: str, kind: Any, default: Any) -> Any:
        stage = self.stage("ptq")
        try:
            return files.decode(kind, stage.details.get(name, default) if stage else default)
        except files.MalformedError as error:
            raise ConfigError(f"{self.path / RUN_FILE} is damaged: {name}: {error}") from None

    @property
    def record(self) -> RunRecord:
        """The record, read from run.json at each access.

        Raises:
            ConfigError: the file is missing or damaged.
        """
        try:
            return parse_record(files.read_json(self.path / RUN_FILE))
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self.path} is not a run folder (no {RUN_FILE}); make one: {make_a_run()}") from None
        except OSError as error:
            raise ConfigError(f"{self.path / RUN_FILE} cannot be read: {error.strerror or error}") from None
        except files.MalformedError as error:
            raise ConfigError(f"{self.path / RUN_FILE} is damaged: {error}") from None

    def write(self, record: RunRecord) -> None:
        """Replace run.json. Raises ValueError for a score that is not finite."""
        files.write_json(self.path / RUN_FILE, record.to_dict())

    def stage(self, name: str) -> StageRecord | None:
        """Return the record of a finished stage, or None while it is not finished."""
        return next((stage for key, stage in self.record.stages.items() if key == name), None)

    def finish_stage(self, name: StageName, entry: dict[str, Any]) -> None:
        """Record a stage as finished. `entry` has the key "checkpoint", a folder relative to the run or absolute."""
        record, stage = self.record, StageRecord(**_grouped(entry, StageRecord, "details"))
        self.write(dataclasses.replace(record, stages={**record.stages, name: stage}))

    def checkpoint(self, name: str) -> Path | None:
        """Return the checkpoint folder of a finished stage, or None."""
        stage = self.stage(name)
        return self.path / stage.checkpoint if stage else None

    def best_quantized(self) -> Path | None:
        """Return the checkpoint to build an INT8 engine from: that of QAT, else the calibrated one, else None."""
        return self.checkpoint("int8") or self.checkpoint("ptq")

    @property
    def lacks_engines(self) -> bool:
        """True for a run of `q8trt quantize` whose report is not written yet."""
        engines = self.record.engines
        return bool(engines and engines.get("build")) and not (self.path / REPORT_FILE).is_file()

    @property
    def resume_command(self) -> str:
        """The command that continues the run."""
        return command("finetune" if self.record.engines is None else "quantize", "--resume", self.path)

    def sweep(self) -> None:
        """Delete the temporary files of killed writers. Those of running writers are locked and stay."""
        files.sweep(self.path, _SWEPT)


def check_new_run(path: str | Path) -> None:
    """Check that a run can be made in the folder `path` without replacing a file. Other files may be there.

    Raises:
        ConfigError: the folder is already a run, contains a name that the run would write, is inside a checkpoint, is or
            contains the current folder, or cannot be written.
    """
    folder = Path(path)
    files.check_folder(folder)
    here = Path.cwd().resolve()
    if folder.resolve() in (here, *here.parents):
        place = "the current folder" if folder.resolve() == here else "above the current folder"
        raise ConfigError(f"--output_dir {path} is {place}; give a new folder, such as runs/NAME")
    if (folder / RUN_FILE).exists():
        run = Run(Path(path))
        record = run.record  # raises ConfigError if the file is damaged or from another program
        is_done = _is_finished(record) and not run.lacks_engines
        resume = "" if is_done else f", or continue it: {run.resume_command}"
        raise ConfigError(f"{path} is a run already; give another --output_dir{resume}")
    for name in WRITTEN:
        if (folder / name).exists() or (folder / name).is_symlink():
            raise ConfigError(
                f"--output_dir {path} contains {name!r} already, which the run would write; give a new folder, or move it away"
            )
    check_outside_checkpoints(folder)


def _is_finished(record: RunRecord) -> bool:
    """Return whether the last stage that the configuration plans is finished."""
    is_quantized = record.config.get("precision") != "fp32"
    return ("fp32" if not is_quantized else "int8" if record.config.get("qat", True) else "ptq") in record.stages


def check_outside_checkpoints(path: str | Path, option: str = "--output_dir") -> None:
    """Raise ConfigError if `path` is a checkpoint of a run or is inside one, because a run replaces its checkpoints whole."""
    target = Path(path).resolve()
    for folder in (target, *target.parents):
        if folder.name in WRITTEN and (folder.parent / RUN_FILE).is_file():
            raise ConfigError(f"{option} {path} is inside {folder}, which belongs to a run; give a folder outside it")


def new_run(
    path: str | Path,
    provenance: dict[str, Any],
    task: str,
    config: dict[str, Any],
    data: dict[str, Any] | None = None,
    engines: dict[str, Any] | None = None,
) -> Run:
    """Make a run folder.

    Args:
        path: the folder.
        provenance: see `q8trt.hardware.provenance`.
        task: name of the task.
        config: JSON-ready configuration, which `--resume` reads.
        data: record of the rows, see `q8trt.tasks.data.record`; None if unknown.
        engines: the engines that the command builds from the run, JSON-ready; None for a command that builds none.

    Raises:
        ConfigError: see `check_new_run`.
    """
    check_new_run(path)
    created, folder = datetime.now(UTC).isoformat(timespec="seconds"), str(Path(path).absolute())
    run = Run(Path(path))
    run.write(RunRecord(FORMAT, task, created, folder, provenance, config, data, {}, engines))
    return run


def new_folder(runs_dir: str | Path, task: str, model: str) -> str:
    """Return a folder for a new run, named by task, model and time, such as ``"runs/sts-b-minilm-20261122-160512"``.

    If the folder exists, as in a loop over seeds, "-2" or a higher number is appended.
    """
    folder = Path(runs_dir) / f"{task}-{model}-{time.strftime('%Y%m%d-%H%M%S')}".casefold()
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(str(path) for path in itertools.chain([folder], others) if not path.exists())


def open_run(path: str | Path) -> Run:
    """Return the run in the folder `path`.

    Raises:
        ConfigError: the folder is not a run, or run.json is damaged.
    """
    run = Run(Path(path))
    _ = run.record
    return run


def find_runs(root: str | Path) -> list[Run]:
    """Return all runs in the folder `root`, the one written last first. Hidden folders are temporary and not runs."""
    written = {}
    for path in Path(root).glob(f"*/{RUN_FILE}"):
        if not path.parent.name.startswith("."):
            try:
                written[path.parent] = path.stat().st_mtime
            except OSError:  # removed meanwhile, or a broken link
                continue
    return [Run(path) for path in sorted(written, key=lambda path: written[path], reverse=True)]


def make_a_run(root: str | Path = RUNS_DIR) -> str:
    """Return a command that makes a run in the folder `root`."""
    return f"{command('finetune', '--task', 'STS-B', *runs_dir_option(root))} (or --demo, which needs no hub)"


def runs_dir() -> Any:
    """Return the option field of the folder of runs."""
    return option(RUNS_DIR, "folder of runs", metavar="DIR")


def runs_dir_option(root: str | Path) -> list[str]:
    """Return the words of the option ``--runs_dir``; [] for the default folder."""
    return [] if Path(root) == Path(RUNS_DIR) else ["--runs_dir", str(root)]
