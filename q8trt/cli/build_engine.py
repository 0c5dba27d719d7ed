"""`build_engine.py`, `q8trt build-engine`: newest run -> ONNX with Q/DQ, TensorRT plan, manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from q8trt.cli.options import Parser, add_runs_dir, say
from q8trt.engine.build import BuildConfig
from q8trt.engine.shapes import Shape, parse_shapes
from q8trt.runs import STAGES


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
    add_runs_dir(made)
    made.add_argument(
        "--no_baseline",
        action="store_true",
        help="with --int8: do not also build the run's FP32 engine to compare with",
    )
    build = made.add_argument_group("build")
    build.add_argument(
        "--backend", metavar="NAME", help="tensorrt or tensorrt_rtx (default: tensorrt where it is installed)"
    )
    for name, shape in (("min", "1x1"), ("opt", "16xN"), ("max", "32xN, N as in training")):
        build.add_argument(
            f"--{name}_shapes", metavar="BxS",
            help=f"{name} of the profile, batch x sequence, as 16x128 or input_ids:16x128 (default: {shape})",
        )  # fmt: skip
    build.add_argument("--timing_cache", metavar="FILE", help="timing cache to read and write")
    build.add_argument("--workspace_mib", type=int, metavar="N", help="limit of the builder's workspace, MiB")
    return made


def _precision(args: Any) -> str:
    from q8trt.errors import ConfigError

    if args.fp32 and (args.int8 or args.fp16):
        raise ConfigError("--fp32 excludes --int8 and --fp16; give one, or --int8 --fp16 for INT8 with FP16 elsewhere")
    if args.fp32:
        return "fp32"
    if args.fp16:
        return "int8+fp16" if args.int8 else "fp16"
    return "int8"


def _given_shapes(args: Any) -> dict[str, Shape]:
    texts = {name: getattr(args, f"{name}_shapes") for name in ("min", "opt", "max")}
    return {name: parse_shapes(text) for name, text in texts.items() if text}


def _build(source: Any, precision: str, config: BuildConfig, output_dir: str | None) -> None:
    from q8trt.building import build_engine
    from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE
    from q8trt.progress import phases

    with phases(f"Building {precision}") as on_progress:
        folder, manifest = build_engine(source, precision, config, output_dir, on_progress)
    sizes = {name: manifest.files[name].bytes / 2**20 for name in (ONNX_FILE, PLAN_FILE)}
    built = manifest.backend
    target = (
        f"{built.name} {built.version}, SM {', '.join(built.sm_targets) or 'of this GPU'}" if built else "no backend"
    )
    say(f"{precision} engine: {folder}")
    say(f"  {ONNX_FILE}  {sizes[ONNX_FILE]:8.1f} MiB")
    say(f"  {PLAN_FILE}  {sizes[PLAN_FILE]:8.1f} MiB  {target}, batch x sequence {manifest.shapes}")


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    precision, shapes = _precision(args), _given_shapes(args)
    from q8trt.building import default_profile, find_source

    source = find_source(precision, args.checkpoint, args.runs_dir, args.stage)
    config = BuildConfig(
        backend=args.backend, shapes=replace(default_profile(source), **shapes), timing_cache=args.timing_cache,
        workspace_mib=args.workspace_mib,
    )  # fmt: skip
    say(f"checkpoint: {source.checkpoint}")
    _build(source, precision, config, args.output_dir)
    baseline = source.run.path / "engine-fp32"
    wants_baseline = precision.startswith("int8") and not args.no_baseline and args.output_dir is None
    if wants_baseline and source.run.checkpoint("fp32") and not baseline.exists():
        say("the run's FP32 engine, to compare with:")
        _build(find_source("fp32", str(source.run.path), args.runs_dir), "fp32", config, None)
    say("next: python benchmark.py")
    return 0
