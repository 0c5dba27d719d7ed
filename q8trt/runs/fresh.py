"""The folder of a run while a command writes to it: one writer, and no trace of an error before the first result."""

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
    """Keep other commands from writing to the run `path`, and delete what killed ones left there.

    The lock is inside the folder: the folder may be a volume, whose parent belongs to someone else. Under torchrun the
    first process holds it for all.

    Raises:
        BusyError: another command writes to it.
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
    """Make a run folder and yield its run; on an error before there is anything to continue from, remove it.

    Under torchrun the first process makes the folder and the others wait for it.

    Args:
        path: the folder.
        command: as typed, for the record.
        config: what the run does; its paths are stored absolute.
        data: the rows that the run reads.
        engines: the engines that the command makes of the run, JSON-ready.

    Raises:
        BusyError: another command writes to it.
        ConfigError: the folder is a run already, or holds what the run would write.
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
    """Remove the run; other files in a folder that was there before stay: they are the user's."""
    for name in WRITTEN:
        shutil.rmtree(path / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # the error that led here is the one to report
            (path / name).unlink()


def _has_begun(path: Path, config: FinetuneConfig) -> bool:
    """Return whether there is a stage or a checkpoint of the Trainer to continue from; a copied model without scores is none."""
    stages = [stage for stage in STAGES if (path / stage).is_dir()]
    if stages == ["fp32"] and config.from_fp32:
        return Run(path).stage("fp32") is not None
    return bool(stages) or any(path.glob("checkpoints/*/checkpoint-*/trainer_state.json"))


def _wait_for_everyone() -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from accelerate import PartialState

        PartialState().wait_for_everyone()
