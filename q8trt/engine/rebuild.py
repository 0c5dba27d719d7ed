"""The commands that build an engine folder, for messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from q8trt.console.commands import command
from q8trt.console.options import options_of
from q8trt.engine.config import BuildConfig
from q8trt.engine.manifest import Manifest
from q8trt.engine.shapes import ShapeOptions, ShapeProfile, bucket_profiles
from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.runs.config import config_of_run
from q8trt.runs.run import RUN_FILE, STAGES, Run


def default_folder_name(stage: str, precision: Precision, target: Target) -> str:
    """Return the name of an engine's folder in its run, whose target is `target`.

    In the INT8 precision of the target, `engine` is the engine of QAT, and `engine-ptq` that of calibration alone. Engines of the
    other INT8 precision have it in their name (`engine-int8-fp32`). Those without quantizers have no stage (`engine-fp16`).
    """
    if not precision.is_quantized:
        return f"engine-{precision}"
    if precision is not target.int8:
        return f"engine-{stage}-{precision.elsewhere}"
    return "engine" if stage == STAGES[-1] else f"engine-{stage}"


def build_command(folder: Path) -> str:
    """Return the command, in backticks, that builds an engine for a `folder` that is not an engine folder.

    It builds from `folder` if that is a run, a run's checkpoint or a model, or from the run that contains it, else from the
    newest run.
    """
    if (folder / RUN_FILE).is_file():
        return f"`{command('build-engine', _best_precision(folder), '--checkpoint', folder)}`"
    in_run = (folder.absolute().parent / RUN_FILE).is_file()
    if in_run and folder.name in STAGES:
        precision = "--fp32" if folder.name == STAGES[0] else "--int8"
        return f"`{command('build-engine', precision, '--checkpoint', folder)}`"
    if not in_run and (folder / "config.json").is_file():
        return f"`{command('quantize', folder)}`"
    return rebuild_command(folder) if in_run else f"`{command('build-engine', '--int8')}`"


def _best_precision(run: Path) -> str:
    """Return --int8 if a run has a quantized stage, or cannot be read, else --fp32."""
    try:
        return "--int8" if Run(run).best_quantized() else "--fp32"
    except ConfigError:
        return "--int8"


def rebuild_command(
    folder: Path,
    manifest: Manifest | None = None,
    profiles: Sequence[ShapeProfile] | None = None,
    backend: str | None = None,
    sm: Sequence[str] | None = None,
) -> str:
    """Return the command, in backticks, that builds the engine of `folder` again on this machine.

    A manifest has no paths of the machine that wrote it. The checkpoint is the run that contains the folder. Without such a run,
    the command has the placeholder RUN, and an explanation follows it.

    Args:
        folder: the engine folder.
        manifest: its manifest; None if it is missing or damaged. Then only the place and name of the folder are used.
        profiles: profiles that replace the manifest's.
        backend: backend that replaces the manifest's. The build options of the former backend are then left out.
        sm: compute capabilities that replace the manifest's; () for none.
    """
    if manifest is None:
        return _command_by_name(folder)
    words = manifest.precision.options
    in_run = (folder.absolute().parent / RUN_FILE).is_file()
    words += ["--checkpoint", str(folder.parent) if in_run else "RUN"]
    words += ["--stage", manifest.stage] if manifest.stage else []
    words += ["--output_dir", str(folder), "--overwrite"]
    words += options_of(_shape_options(manifest.profiles if profiles is None else profiles))
    name = backend or (manifest.backend.name if manifest.backend else None)
    words += ["--backend", name] if name else []
    options = manifest.record.build.options if backend is None else BuildConfig()
    words += options_of(replace(options, backend=None, sm=options.sm if sm is None else tuple(sm)))
    words += options_of(manifest.record.export.options)
    model = "" if in_run else f" (RUN: the run of {manifest.model.name} on {manifest.task.name} that it was made from)"
    return f"`{command('build-engine', *words)}`{model}"


def _command_by_name(folder: Path) -> str:
    """Return the command for a folder without a readable manifest, from its path and name."""
    run = folder.absolute().parent
    if not (run / RUN_FILE).is_file():
        line = command("build-engine", "--int8", "--checkpoint", "RUN", "--output_dir", folder, "--overwrite")
        return f"`{line}` (RUN: the run that it was made from)"
    words = ["--int8", "--checkpoint", str(folder.parent), "--output_dir", str(folder), "--overwrite"]
    target = _target(run)
    for stage, precision in product(STAGES, Precision):
        if default_folder_name(stage, precision, target) == folder.absolute().name and precision.is_quantized == (
            stage != "fp32"
        ):
            words = [*precision.options, *(["--stage", stage] if precision.is_quantized else [])]
            words += ["--checkpoint", str(folder.parent)]
    return f"`{command('build-engine', *words)}`"


def _target(run: Path) -> Target:
    """Return the target of a run; the default target if the run cannot be read."""
    try:
        return config_of_run(Run(run)).target
    except ConfigError:
        return Target.GPU


def _shape_options(profiles: Sequence[ShapeProfile]) -> ShapeOptions:
    """Return the options that make `profiles`: buckets and batches if possible, else the shapes of a single profile."""
    if not profiles:
        return ShapeOptions()
    first = profiles[0]
    buckets = tuple(sorted({profile.max[1] for profile in profiles}))
    if tuple(profiles) == bucket_profiles(buckets, first.opt[0], first.max[0]):
        return ShapeOptions(buckets, first.opt[0], first.max[0])
    return ShapeOptions(min_shapes=first.min, opt_shapes=first.opt, max_shapes=first.max)
