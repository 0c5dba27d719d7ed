"""`build_engine.py`, `q8trt build-engine`: newest run -> ONNX with Q/DQ, TensorRT plan, manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from q8trt.cli.options import Parser, add_dataclass, add_runs_dir, read_dataclass, say, warn
from q8trt.cli.terminal import table_console
from q8trt.console.commands import command, options_of
from q8trt.engine.config import BuildConfig, parse_sms
from q8trt.engine.shapes import Shape, ShapeProfile, parse_buckets, parse_shapes, show_profiles
from q8trt.errors import ConfigError
from q8trt.export.options import ExportOptions
from q8trt.quantization.precision import Precision
from q8trt.runs.run import RUN_FILE, STAGES


def parser() -> Parser:
    """The options of the command; names are trtexec's where it has one."""
    made = Parser(
        prog="build_engine.py",
        description="Export a run's checkpoint to ONNX and build its TensorRT engine -> <run>/engine/",
        epilog="example: python build_engine.py --int8\n         python build_engine.py --int8 --fp16 --checkpoint runs/NAME",
    )
    precision = made.add_argument_group("precision (default: --int8)")
    precision.add_argument(
        "--int8", action="store_true", help="INT8 where the recipe says, FP32 elsewhere; with --fp16: FP16 elsewhere"
    )
    precision.add_argument("--fp16", action="store_true", help="FP16")
    precision.add_argument("--fp32", action="store_true", help="FP32")
    made.add_argument(
        "--checkpoint", metavar="DIR", help="a run, or a checkpoint folder in it (default: the newest run's best)"
    )
    made.add_argument(
        "--stage",
        choices=STAGES,
        help="which of the run's checkpoints (default: int8, else ptq; fp32 for --fp32 and --fp16)",
    )
    made.add_argument(
        "--output_dir", metavar="DIR", help="the engine folder (default: <run>/engine, or engine-<what> for others)"
    )
    made.add_argument(
        "--overwrite", action="store_true",
        help="replace an engine that is in --output_dir already; the default folder is replaced without this",
    )  # fmt: skip
    add_runs_dir(made)
    made.add_argument(
        "--no_baseline",
        action="store_true",
        help="with --int8: do not also build the run's FP32 engine to compare with",
    )
    shapes = made.add_argument_group("shapes (batch x sequence)")
    shapes.add_argument(
        "--buckets", metavar="N,N,...",
        help="one optimization profile for each of these sequence lengths, as 32,64,128 (default: one, as in training)",
    )  # fmt: skip
    shapes.add_argument("--opt_batch", type=int, metavar="N", help="batch that profiles are tuned for (default: 16)")
    shapes.add_argument("--max_batch", type=int, metavar="N", help="largest batch of the profiles (default: 32)")
    for name in ("min", "opt", "max"):
        shapes.add_argument(
            f"--{name}_shapes", metavar="BxS",
            help=f"{name} of a single profile, as 16x128 or input_ids:16x128; not with --buckets and the batches above",
        )  # fmt: skip
    add_dataclass(made, ExportOptions, "export")
    add_dataclass(made, BuildConfig, "build", skip=("profiles", "sm"))
    more = made.add_argument_group("target and check")
    more.add_argument("--sm", metavar="N,N,...", help=BuildConfig.__dataclass_fields__["sm"].metadata["help"])
    more.add_argument(
        "--verify_deterministic", action="store_true", help="build twice, and say whether the plans are the same"
    )
    return made


def _precision(args: Any) -> Precision:
    if args.fp32 and (args.int8 or args.fp16):
        raise ConfigError("--fp32 excludes --int8 and --fp16; give one, or --int8 --fp16 for INT8 with FP16 elsewhere")
    if args.fp32:
        return Precision.FP32
    if args.fp16:
        return Precision.INT8_FP16 if args.int8 else Precision.FP16
    return Precision.INT8


def _given_shapes(args: Any) -> dict[str, Shape]:
    texts = {name: getattr(args, f"{name}_shapes") for name in ("min", "opt", "max")}
    return {name: parse_shapes(text) for name, text in texts.items() if text}


def _profiles(args: Any, source: Any) -> tuple[ShapeProfile, ...]:
    """The profiles that the options ask for.

    Raises:
        ConfigError: a single profile's shapes beside buckets or batches, or values that make no profile.
    """
    from q8trt.deployment.engine_folder import profiles_for

    given = _given_shapes(args)
    others = [name for name in ("buckets", "opt_batch", "max_batch") if getattr(args, name) is not None]
    if given and others:
        raise ConfigError(
            f"--{others[0]} excludes --{next(iter(given))}_shapes: give buckets and batches, or the shapes of one profile"
        )
    buckets = () if args.buckets is None else parse_buckets(args.buckets)
    profiles = profiles_for(source, buckets, args.opt_batch, args.max_batch)
    longest = source.config.data.max_seq_length
    if buckets and buckets[-1] < longest:
        warn(f"the plan takes {buckets[-1]} tokens at most; the model was trained with {longest}: longer rows are cut")
    return (replace(profiles[0], **given),) if given else profiles


def _build(source: Any, precision: Precision, config: BuildConfig, args: Any, output_dir: str | None) -> Path:
    from q8trt.console.progress import is_main_process, phases
    from q8trt.deployment.engine_folder import build_engine
    from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE
    from q8trt.reporting.engine_table import engine_table

    say(f"exporting {precision} with the {args.exporter} exporter, then building: about a minute for a small model")
    with phases(f"Building {precision}") as on_progress:
        options = read_dataclass(ExportOptions, args)
        folder, manifest = build_engine(
            source, precision, config, output_dir, on_progress, args.verify_deterministic, options, args.overwrite
        )
    sizes = {name: manifest.files[name].bytes / 2**20 for name in (ONNX_FILE, PLAN_FILE)}
    built = manifest.backend
    target = (
        f"{built.name} {built.version}, SM {', '.join(built.sm_targets) or 'of this GPU'}" if built else "no backend"
    )
    say(f"{precision} engine: {folder}")
    say(f"  {ONNX_FILE}  {sizes[ONNX_FILE]:8.1f} MiB")
    say(f"  {PLAN_FILE}  {sizes[PLAN_FILE]:8.1f} MiB  {target}, batch x sequence {show_profiles(manifest.profiles)}")
    if is_main_process():
        table_console().print(engine_table(manifest.report))
    twice = manifest.report["build"]["built_twice"]
    if twice and not twice["identical"]:
        say(f"  built twice: {twice['difference']}")
    kept = manifest.report["export"]["kept_fp32"]
    if precision.is_half:
        rows = manifest.report["export"]["overflow_rows"]
        say(f"  kept in FP32: {len(kept)} operations, looked for on {rows}")
    for op in kept:
        say(f"    {op['name']}: {op['reason']}")
    for note in manifest.report["engine"]["notes"]:
        say(f"  note: {note}")
    if manifest.report["findings"]:
        say(f"  {manifest.report['findings']} findings of the linter: {command('lint', folder / ONNX_FILE)}")
    return folder


def _next(engines: Sequence[Path], source: Any) -> str:
    """Return the command that scores and times `engines`; those outside the run need to be told the data."""
    words = [word for engine in engines for word in ("--engine", str(engine))]
    in_run = any((engine.parent / RUN_FILE).is_file() for engine in engines)
    return command("benchmark", *words, *([] if in_run else options_of(source.config.data)))


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    precision = _precision(args)
    _given_shapes(args)  # what cannot be read is refused before a run is looked for
    args.sm = () if args.sm is None else parse_sms(args.sm)
    read_dataclass(BuildConfig, args, profiles=(ShapeProfile(),))
    read_dataclass(ExportOptions, args)
    from q8trt.deployment.engine_folder import check_output, find_source

    source = find_source(precision, args.checkpoint, args.runs_dir, args.stage)
    config = read_dataclass(BuildConfig, args, profiles=_profiles(args, source))
    check_output(source, precision, args.output_dir, args.overwrite)
    say(f"checkpoint: {source.checkpoint}")
    engines = [_build(source, precision, config, args, args.output_dir)]
    baseline = source.run.path / "engine-fp32"
    wants_baseline = precision.is_quantized and not args.no_baseline and args.output_dir is None
    if wants_baseline and source.run.checkpoint("fp32") and not baseline.exists():
        say("the run's FP32 engine, to compare with:")
        _build(find_source(Precision.FP32, str(source.run.path), args.runs_dir), Precision.FP32, config, args, None)
    if baseline.is_dir() and baseline not in engines:
        engines.insert(0, baseline)
    say(f"next: {_next(engines, source)}")
    return 0
