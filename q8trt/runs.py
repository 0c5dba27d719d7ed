"""Run folders: what a training or calibration leaves for the steps after it.

runs/<name>/
  run.json           configuration, provenance, and per stage: scores, steps, seconds a step
  fp32/ ptq/ int8/   checkpoints: fine-tuned, calibrated, quantization-aware fine-tuned
  checkpoints/       of the Trainer, for --resume
  logs/              TensorBoard
  engine*/           what build_engine.py made of the run
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.errors import ConfigError

RUN_FILE = "run.json"
#: Where run folders are made and looked for, below the current folder.
RUNS_DIR = "runs"
STAGES = ("fp32", "ptq", "int8")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def record(self) -> dict[str, Any]:
        """run.json: {format, provenance, created, folder, task, config, data, stages}.

        Raises:
            ConfigError: the file is missing or damaged.
        """
        try:
            record: Any = files.read_json(self.path / RUN_FILE)
        except OSError:
            raise ConfigError(
                f"{self.path} is not a run folder (no {RUN_FILE}); make one: python finetune.py"
            ) from None
        except ValueError as error:  # not JSON, or not UTF-8
            raise ConfigError(f"{self.path / RUN_FILE} is damaged: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("stages"), dict):
            raise ConfigError(f"{self.path / RUN_FILE} is damaged: expected an object with 'stages'")
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Replace run.json."""
        files.write_json(self.path / RUN_FILE, record)

    def stage(self, name: str) -> dict[str, Any] | None:
        """What run.json says of a finished stage, or None while it is not finished."""
        entry: dict[str, Any] | None = self.record["stages"].get(name)
        return entry

    def finish_stage(self, name: str, entry: dict[str, Any]) -> None:
        """Note a stage as finished; `entry` needs "checkpoint", the folder, relative to the run or absolute."""
        record = self.record
        record["stages"][name] = entry
        self.write(record)

    def checkpoint(self, name: str) -> Path | None:
        """The checkpoint folder of a finished stage, or None."""
        entry = self.stage(name)
        return self.path / entry["checkpoint"] if entry else None

    def best_quantized(self) -> Path | None:
        """The checkpoint to build an INT8 engine from: QAT's, else the calibrated one."""
        return self.checkpoint("int8") or self.checkpoint("ptq")


def new_run(
    path: str | Path, provenance: dict[str, Any], task: str, config: dict[str, Any], data: dict[str, Any] | None = None
) -> Run:
    """Make a run folder.

    Args:
        path: the folder.
        provenance: command, commit, versions, hardware and date: see `q8trt.provenance`.
        task: the task's name.
        config: JSON-ready configuration, from which `--resume` continues.
        data: the record of the rows, see `q8trt.data.record`; None leaves them out.

    Raises:
        ConfigError: the folder is a run already.
    """
    path = Path(path)
    if (path / RUN_FILE).exists():
        raise ConfigError(f"{path} is a run already; choose another --output_dir, or continue it with --resume {path}")
    run = Run(path)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"format": 1, "provenance": provenance, "created": created, "folder": str(path.absolute()), "task": task}
    run.write({**record, "config": config, "data": data, "stages": {}})
    return run


def run_name(task: str, model: str) -> str:
    """``"sts-b-minilm-20261122-160512"``: a name for a new run, from the task, the model and the time."""
    return f"{task}-{model}-{time.strftime('%Y%m%d-%H%M%S')}".casefold()


def open_run(path: str | Path) -> Run:
    """The run in the folder `path`.

    Raises:
        ConfigError: the folder is not a run.
    """
    run = Run(Path(path))
    _ = run.record
    return run


def find_runs(root: str | Path) -> list[Run]:
    """All runs under `root`, the one written last first."""
    found = sorted(Path(root).glob(f"*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [Run(path.parent) for path in found]


def newest_run(root: str | Path, stages: tuple[str, ...]) -> Run:
    """The newest run that has finished one of `stages`.

    Raises:
        ConfigError: there is none; the message says how to make one.
    """
    for run in find_runs(root):
        if any(run.stage(stage) for stage in stages):
            return run
    raise ConfigError(
        f"no run with a finished {' or '.join(stages)} checkpoint under {root}/; make one: python finetune.py --task STS-B "
        "(or --demo, which needs no hub)"
    )
