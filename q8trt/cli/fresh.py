"""A new run's folder, which an error before the first result removes again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from q8trt.errors import InterruptedRunError
from q8trt.progress import is_main_process
from q8trt.provenance import provenance
from q8trt.runs import RUN_FILE, STAGES, Run, new_run

if TYPE_CHECKING:
    from q8trt.data import DataRecord
    from q8trt.finetune_config import FinetuneConfig


@contextlib.contextmanager
def fresh_run(
    path: str | Path, command: Sequence[str], config: FinetuneConfig, data: DataRecord | None = None
) -> Iterator[Run]:
    """Make a run folder and yield its run; on an error before there is anything to continue from, remove it.

    Under torchrun the first process makes the folder and the others wait for it.

    Args:
        path: the folder.
        command: as typed, for the record.
        config: what the run does; its paths are stored absolute.
        data: the rows that the run reads.

    Raises:
        ConfigError: the folder is a run already.
    """
    path = Path(path)
    was_run = (path / RUN_FILE).exists()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        if is_main_process():
            rows, stored = data.to_dict() if data else None, config.absolute().to_dict()
            new_run(path, provenance(list(command)), config.data.resolved_task.name, stored, rows)
        _wait_for_everyone()
        yield Run(path)
    except InterruptedRunError:
        raise
    except Exception:
        if is_main_process() and not was_run and not _has_begun(path):
            _remove(path, missing)
        raise


def _remove(path: Path, missing: Sequence[Path]) -> None:
    """Remove the run, and the folders that were `missing` before it; what was there stays, for it is the user's."""
    if path in missing:
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # the error that led here is the one to report
        (path / RUN_FILE).unlink(missing_ok=True)
        for folder in missing[1:]:
            folder.rmdir()


def _has_begun(path: Path) -> bool:
    """Whether there is a finished stage or a checkpoint of the Trainer, so that `--resume` saves work."""
    stages = any((path / stage).is_dir() for stage in STAGES)
    return stages or any(path.glob("checkpoints/*/checkpoint-*/trainer_state.json"))


def _wait_for_everyone() -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from accelerate import PartialState

        PartialState().wait_for_everyone()
