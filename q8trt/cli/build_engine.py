"""Export a run's checkpoint to ONNX and build its TensorRT engine. The engine folder is <run>/engine/.

example: python build_engine.py --int8
         python build_engine.py --int8 --fp16 --checkpoint runs/NAME
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console, warn
from q8trt.console.commands import command
from q8trt.console.options import group, option, options_of, same_option
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import ShapeOptions
from q8trt.errors import ConfigError, EngineError
from q8trt.export.options import ExportOptions
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import RUN_FILE, STAGES, runs_dir

if TYPE_CHECKING:
    from q8trt.deployment.source import Source


@dataclass(frozen=True)
class PrecisionFlags:
    """The flags that name a precision."""

    int8: bool = option(False, "INT8 for the sites of the recipe; elsewhere FP16 or FP32, as the target decides")
    fp16: bool = option(False, "FP16; with --int8: FP16 elsewhere")
    fp32: bool = option(False, "FP32; with --int8: FP32 elsewhere")

    def __post_init__(self) -> None:
        if self.fp16 and self.fp32:
            raise ConfigError("--fp16 and --fp32 exclude each other; pass one of them, with --int8 for an INT8 engine")

    @property
    def precision(self) -> Precision | None:
        """The precision that they name; None for the target's INT8 precision."""
        typed = [f"--{each.name}" for each in fields(self) if getattr(self, each.name)]
        return next((each for each in Precision if each.options == typed), None)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command, with the names of trtexec if it has the option."""

    checkpoint: str | None = option(
        None,
        "a run, or a checkpoint folder in it; with --fp16 or --fp32 also the folder of a fine-tuned model, which becomes a run",
        metavar="DIR",
        unset="the best of the newest run that fits the precision",
    )
    stage: str | None = option(
        None, "checkpoint of the run", choices=STAGES, unset="int8 if it exists, else ptq; fp32 for --fp32 and --fp16"
    )
    output_dir: str | None = option(
        None, "engine folder", metavar="DIR", unset="<run>/engine, or engine-<stage and precision> for others"
    )
    overwrite: bool = option(
        False, "replace an engine in --output_dir; the default folder is replaced without this option"
    )
    runs_dir: str = runs_dir()
    target: str | None = same_option(FinetuneConfig, "target", default=None, unset="the run's")
    baseline: bool = option(
        True,
        "after an INT8 engine in its default folder: also build the missing baseline engines of the run: FP32 and, for the "
        "target gpu, FP16",
    )
    verify_deterministic: bool = option(False, "build twice, and report whether the plans are the same")
    flags: PrecisionFlags = group("precision (default: --int8)")
    shapes: ShapeOptions = group("shapes (batch x sequence)")
    export: ExportOptions = group("export")
    build: BuildConfig = group("build")


PARSER = Parser(Options, "build_engine.py", __doc__)


def _build(source: Source, options: Options, output_dir: str | None) -> Path:
    """Build an engine, print its summary, and return its folder."""
    from q8trt import api
    from q8trt.console.progress import is_main_process
    from q8trt.engine.manifest_file import load_manifest
    from q8trt.reporting.engine_summary import engine_table, file_lines, remark_lines
    from q8trt.reporting.terminal import print_table

    exporter = options.export.exporter
    say(f"exporting {source.precision} with the {exporter} exporter, then building: about a minute for a small model")
    folder = api.build_engine(
        source.run, source.precision, target=source.target, stage=source.stage, build=options.build, shapes=options.shapes,
        export=options.export, output_dir=output_dir, overwrite=options.overwrite,
        verify_deterministic=options.verify_deterministic, progress=True,
    )  # fmt: skip
    manifest = load_manifest(folder, verify=False)
    say("\n".join(file_lines(folder, manifest)))
    if is_main_process() and manifest.backend is not None:
        print_table(table_console(), engine_table(manifest.record))
    for line in remark_lines(folder, manifest):
        say(line)
    return folder


def _next(engines: Sequence[Path], source: Source) -> str:
    """Return the command that scores and times `engines`. If all of them are outside a run, it names the data."""
    words = [word for engine in engines for word in ("--engine", str(engine))]
    in_run = any((engine.parent / RUN_FILE).is_file() for engine in engines)
    return command("benchmark", *words, *([] if in_run else options_of(source.config.data)))


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    from q8trt.deployment.engine_folder import check_output
    from q8trt.deployment.quantizing import run_of_folder
    from q8trt.deployment.source import find_source

    target, precision = None if options.target is None else Target.parse(options.target), options.flags.precision
    checkpoint = run_of_folder(
        options.checkpoint,
        precision,
        options.runs_dir,
        say,
        ["build_engine.py", *argv],
        options.output_dir,
        options.overwrite,
    )
    source = find_source(precision, checkpoint, options.runs_dir, options.stage, target)
    length = source.config.data.max_seq_length
    options.shapes.profiles(length)  # refuses bad shapes before a checkpoint is read
    if options.shapes.buckets and options.shapes.buckets[-1] < length:
        warn(
            f"the plan accepts at most {options.shapes.buckets[-1]} tokens; the model was trained with {length}, so longer rows "
            "are cut"
        )
    check_output(source, options.output_dir, options.overwrite)
    say(f"checkpoint: {source.checkpoint}")
    engine = _build(source, options, options.output_dir)
    baselines = [folder for folder in _baselines(source, options) if folder != engine]
    say(f"next: {_next([*baselines, *_siblings(engine, source), engine], source)}")
    return 0


def _siblings(engine: Path, source: Source) -> list[Path]:
    """Return the other engines of `engine`'s run at the same precision, such as QAT beside PTQ, if `engine` is in its run."""
    from q8trt.engine.folder import engine_folders
    from q8trt.engine.manifest_file import load_manifest

    siblings = []
    for folder in sorted(engine_folders(source.run.path)) if engine.parent == source.run.path else ():
        with suppress(EngineError):
            if folder != engine and load_manifest(folder, verify=False).precision is source.precision:
                siblings.append(folder)
    return siblings


def _baselines(source: Source, options: Options) -> list[Path]:
    """Build the missing baseline engines of an INT8 engine in its default folder, and return the folders of all baselines.

    With --no_baseline or --output_dir, or after a float engine, nothing is built.
    """
    from q8trt.deployment.engine_folder import default_folder
    from q8trt.deployment.source import find_source

    if not source.run.checkpoint("fp32"):
        return []
    run, wants_all = (
        str(source.run.path),
        source.precision.is_quantized and options.baseline and options.output_dir is None,
    )
    baselines = [find_source(each, run, options.runs_dir, target=source.target) for each in source.target.baselines]
    for each in baselines:
        if wants_all and not default_folder(each).exists():
            say(f"the run's {each.precision.label} engine, to compare with:")
            _build(each, options, None)
    return [folder for folder in map(default_folder, baselines) if folder.is_dir()]
