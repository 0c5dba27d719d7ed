"""The folder of a run while a command writes to it: its lock, and its removal after an early error."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.console.progress import is_main_process
from q8trt.errors import InterruptedRunError
from q8trt.hardware.provenance import provenance
from q8trt.runs.run import RUN_FILE, STAGES, WRITTEN, Run, check_new_run, new_run

if TYPE_CHECKING:
    from q8trt.runs.config import FinetuneConfig
    from q8trt.tasks.data import DataRecord


@contextlib.contextmanager
def sole_writer(path: str | Path) -> Iterator[None]:
    """Lock the run `path` for this command, and delete the temporary files of killed commands.

    The lock is inside the folder, because the folder may be a mounted volume whose parent cannot be written. Under torchrun,
    only the first process locks.

    Raises:
        BusyError: another command writes to the run.
    """
    if not is_main_process():
        yield
        return
    with files.exclusive(Path(path) / RUN_FILE):
        Run(Path(path)).sweep()
        yield


@contextlib.contextmanager
def fresh_run(
    path: str | Path,
    command: Sequence[str],
    config: FinetuneConfig,
    data: DataRecord | None = None,
    engines: dict[str, Any] | None = None,
) -> Iterator[Run]:
    """Make a run folder and yield its run. If an error occurs before a stage or a checkpoint exists, remove the run.

    Under torchrun, the first process makes the folder and the others wait for it.

    Args:
        path: the folder.
        command: words of the command line, for the record.
        config: configuration of the run; its paths are stored as absolute paths.
        data: record of the rows that the run reads; None if unknown.
        engines: the engines that the command builds from the run, JSON-ready; None for a command that builds none.

    Raises:
        BusyError: another command writes to the folder.
        ConfigError: the folder is already a run, or contains a name that the run would write.
    """
    path = Path(path)
    with sole_writer(path):
        if is_main_process():
            check_new_run(path)
        try:
            if is_main_process():
                rows, stored = data.to_dict() if data else None, config.absolute().to_dict()
                new_run(path, provenance(list(command)), config.data.resolved_task.name, stored, rows, engines)
            _wait_for_everyone()
            yield Run(path)
        except InterruptedRunError:
            raise
        except Exception:
            if is_main_process() and not _has_begun(path, config):
                _remove(path)
            raise


def _remove(path: Path) -> None:
    """Remove the files of the run. Other files in the folder belong to the user and stay."""
    for name in WRITTEN:
        shutil.rmtree(path / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # the original error is reported
            (path / name).unlink()


def _has_begun(path: Path, config: FinetuneConfig) -> bool:
    """Return whether a stage or a checkpoint of the Trainer exists. A copy of `config.from_fp32` counts once it has scores."""
    stages = [stage for stage in STAGES if (path / stage).is_dir()]
    if stages == ["fp32"] and config.from_fp32:
        return Run(path).stage("fp32") is not None
    return bool(stages) or any(path.glob("checkpoints/*/checkpoint-*/trainer_state.json"))


def _wait_for_everyone() -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from accelerate import PartialState

        PartialState().wait_for_everyone()
