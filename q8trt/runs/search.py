"""Search for runs by their finished stages, and the command that finishes a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from q8trt.console.commands import command
from q8trt.console.options import options_of
from q8trt.errors import ConfigError
from q8trt.runs.config import config_of_run, last_stage
from q8trt.runs.run import STAGES, Run, find_runs, make_a_run

_log = logging.getLogger(__name__)


def sound_runs(root: str | Path) -> Iterator[Run]:
    """Yield the readable runs in the folder `root`, the one written last first; log a warning for each other run."""
    for run in find_runs(root):
        if is_sound(run):
            yield run


def is_sound(run: Run) -> bool:
    """Return whether run.json can be read; log a warning if it cannot."""
    try:
        _ = config_of_run(run)
    except ConfigError as error:
        _log.warning("skipping a run: %s", error)
        return False
    return True


def newest_run(root: str | Path, stages: tuple[str, ...]) -> Run:
    """Return the newest run that has finished one of `stages`; runs that cannot be read are skipped with a warning.

    Raises:
        ConfigError: there is no such run.
    """
    for run in sound_runs(root):
        if any(run.stage(stage) for stage in stages):
            return run
    raise ConfigError(
        f"no run with a finished {' or '.join(stages)} checkpoint under {root}/; make one: {make_a_run(root)}"
    )


def how_to_finish(run: Run, stages: Sequence[str]) -> str:
    """Return the advice for a run that has finished none of `stages`, with a command to run."""
    config, record = config_of_run(run), run.record
    planned = STAGES[: STAGES.index(last_stage(config)) + 1]
    if set(stages) & set(planned) or "fp32" not in record.stages:
        return f"finish it: {run.resume_command}"
    if "ptq" in record.stages:
        build = command("build-engine", "--int8", "--checkpoint", run.path, "--stage", "ptq")
        return f"it ends with calibration; build its calibrated checkpoint: {build}"
    fp32 = run.path / record.stages["fp32"].checkpoint
    calibrate = command("calibrate", "--model_name_or_path", fp32, *options_of(config.data))
    return f"it ends with FP32; calibrate that: {calibrate}"
