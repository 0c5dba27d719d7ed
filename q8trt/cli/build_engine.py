"""Export a run's checkpoint to ONNX and build its TensorRT engine -> <run>/engine/

example: python build_engine.py --int8
         python build_engine.py --int8 --fp16 --checkpoint runs/NAME
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console, warn
from q8trt.console.commands import command
from q8trt.console.options import group, option, options_of
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import ShapeOptions
from q8trt.errors import ConfigError
from q8trt.export.options import ExportOptions
from q8trt.quantization.precision import Precision
from q8trt.runs.run import RUN_FILE, STAGES, runs_dir

if TYPE_CHECKING:
    from q8trt.deployment.source import Source


@dataclass(frozen=True)
class PrecisionFlags:
    """The flags that name a precision."""

    int8: bool = option(False, "INT8 where the recipe says, FP32 elsewhere; with --fp16: FP16 elsewhere")
    fp16: bool = option(False, "FP16")
    fp32: bool = option(False, "FP32")

    def __post_init__(self) -> None:
        if self.fp32 and len(self._names) > 1:
            raise ConfigError(
                "--fp32 excludes --int8 and --fp16; give one, or --int8 --fp16 for INT8 with FP16 elsewhere"
            )

    @property
    def _names(self) -> list[str]:
        return [each.name for each in fields(self) if getattr(self, each.name)]

    @property
    def precision(self) -> Precision:
        """The precision that they name."""
        return Precision.parse("+".join(self._names) or Precision.INT8)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command; names are trtexec's where it has one."""

    checkpoint: str | None = option(
        None, "a run, or a checkpoint folder in it", metavar="DIR", unset="the newest run's best"
    )
    stage: str | None = option(
        None, "checkpoint of the run", choices=STAGES, unset="int8, else ptq; fp32 for --fp32 and --fp16"
    )
    output_dir: str | None = option(
        None, "engine folder", metavar="DIR", unset="<run>/engine, or engine-<stage and precision> for others"
    )
    overwrite: bool = option(
        False, "replace an engine that is in --output_dir already; the default folder is replaced without this"
    )
    runs_dir: str = runs_dir()
    baseline: bool = option(True, "with --int8: also build the run's FP32 engine, to compare with")
    verify_deterministic: bool = option(False, "build twice, and report whether the plans are the same")
    flags: PrecisionFlags = group("precision (default: --int8)")
    shapes: ShapeOptions = group("shapes (batch x sequence)")
    export: ExportOptions = group("export")
    build: BuildConfig = group("build")


PARSER = Parser(Options, "build_engine.py", __doc__)


def _build(source: Source, precision: Precision, options: Options, output_dir: str | None) -> Path:
    """Build an engine and print its summary; returns its folder."""
    from q8trt import api
    from q8trt.console.progress import is_main_process
    from q8trt.engine.manifest_file import load_manifest
    from q8trt.reporting.engine_summary import engine_table, file_lines, remark_lines
    from q8trt.reporting.terminal import print_table

    exporter = options.export.exporter
    say(f"exporting {precision} with the {exporter} exporter, then building: about a minute for a small model")
    folder = api.build_engine(
        source.run, precision, stage=source.stage, build=options.build, shapes=options.shapes, export=options.export,
        output_dir=output_dir, overwrite=options.overwrite, verify_deterministic=options.verify_deterministic, progress=True,
    )  # fmt: skip
    manifest = load_manifest(folder, verify=False)
    say("\n".join(file_lines(folder, manifest)))
    if is_main_process():
        print_table(table_console(), engine_table(manifest.record))
    for line in remark_lines(folder, manifest):
        say(line)
    return folder


def _next(engines: Sequence[Path], source: Source) -> str:
    """Return the command that scores and times `engines`; it names the data for those outside the run."""
    words = [word for engine in engines for word in ("--engine", str(engine))]
    in_run = any((engine.parent / RUN_FILE).is_file() for engine in engines)
    return command("benchmark", *words, *([] if in_run else options_of(source.config.data)))


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options: Options = PARSER.read(argv)
    precision = options.flags.precision
    from q8trt.deployment.engine_folder import check_output
    from q8trt.deployment.source import find_source

    source = find_source(precision, options.checkpoint, options.runs_dir, options.stage)
    length = source.config.data.max_seq_length
    options.shapes.profiles(length)  # what makes no profile is refused before a checkpoint is read
    if options.shapes.buckets and options.shapes.buckets[-1] < length:
        warn(
            f"the plan takes {options.shapes.buckets[-1]} tokens at most; the model was trained with {length}: longer rows "
            "are cut"
        )
    check_output(source, precision, options.output_dir, options.overwrite)
    say(f"checkpoint: {source.checkpoint}")
    engines = [_build(source, precision, options, options.output_dir)]
    baseline = source.run.path / "engine-fp32"
    wants_baseline = precision.is_quantized and options.baseline and options.output_dir is None
    if wants_baseline and source.run.checkpoint("fp32") and not baseline.exists():
        say("the run's FP32 engine, to compare with:")
        fp32 = find_source(Precision.FP32, str(source.run.path), options.runs_dir)
        _build(fp32, Precision.FP32, options, None)
    if baseline.is_dir() and baseline not in engines:
        engines.insert(0, baseline)
    say(f"next: {_next(engines, source)}")
    return 0
