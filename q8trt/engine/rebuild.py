"""The command that builds an engine folder, told from its place and name: its manifest may be missing or damaged."""

from __future__ import annotations

import re
from pathlib import Path

from q8trt.console.commands import command
from q8trt.errors import ConfigError
from q8trt.runs.run import RUN_FILE, Run

#: Names of the folders that `build_engine.py` makes in a run.
_DEFAULT = re.compile(r"engine(-(?P<stage>fp32|ptq|int8))?(?P<half>-fp16)?")


def build_command(folder: Path) -> str:
    """Return the command that builds an engine where `folder` is none: of the run that it is or is in, else the newest's."""
    if (folder / RUN_FILE).is_file():
        return f"`{command('build-engine', _best_precision(folder), '--checkpoint', folder)}`"
    in_run = (folder.absolute().parent / RUN_FILE).is_file()
    return rebuild_command(folder) if in_run else f"`{command('build-engine', '--int8')}`"


def _best_precision(run: Path) -> str:
    """Return the option that the finished stages of a run allow; that of a run that cannot be read is INT8's."""
    try:
        return "--int8" if Run(run).best_quantized() else "--fp32"
    except ConfigError:
        return "--int8"


def rebuild_command(folder: Path) -> str:
    """Return the command in backticks. An unknown run is written RUN, with an explanation."""
    run, match = folder.absolute().parent, _DEFAULT.fullmatch(folder.absolute().name)
    if not (run / RUN_FILE).is_file():
        line = command("build-engine", "--int8", "--checkpoint", "RUN", "--output_dir", folder, "--overwrite")
        return f"`{line}` (RUN: the run that it was made from)"
    if match is None:
        words = ["--int8", "--checkpoint", str(folder.parent), "--output_dir", str(folder), "--overwrite"]
    else:
        words = [*_precision(match["stage"], bool(match["half"])), "--checkpoint", str(folder.parent)]
    return f"`{command('build-engine', *words)}`"


def _precision(stage: str | None, half: bool) -> list[str]:
    """Return the options that make the default folder of a stage and a precision."""
    if stage == "fp32" or (stage is None and half):
        return ["--fp16" if half else "--fp32"]
    return ["--int8", *(["--fp16"] if half else []), "--stage", stage or "int8"]
