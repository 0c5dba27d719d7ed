"""`benchmark.py`, `q8trt benchmark`: newest engine -> accuracy on the development set, latency, throughput, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8trt.benchmarking import BenchmarkConfig, parse_shapes_list
from q8trt.cli.options import Parser, add_data, add_runs_dir, chosen_data, say
from q8trt.errors import ConfigError


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="benchmark.py",
        description="Score and time the newest engine beside the other engines of its run; without a GPU, ONNX Runtime runs "
        "the same graphs on the CPU and every line says so.",
        epilog="example: python benchmark.py\n         python benchmark.py --engine runs/NAME/engine --shapes 1x128,8x128,32x128",
    )
    made.add_argument(
        "--engine", action="append", default=[], metavar="DIR", help="engine folder; repeat to compare several"
    )
    add_runs_dir(made)
    made.add_argument(
        "--backend", metavar="NAME", help="tensorrt, tensorrt_rtx or onnxruntime (default: the best that runs here)"
    )
    made.add_argument("--no_accuracy", action="store_true", help="time only")
    made.add_argument("--parity", action="store_true", help="also state how far logits are from the torch checkpoint's")
    made.add_argument(
        "--output_dir", metavar="DIR", help="where benchmark.json and benchmark.md go (default: beside the engine)"
    )
    made.add_argument("--name", default="benchmark", metavar="TEXT", help="stem of the two files (default: benchmark)")
    timing = made.add_argument_group("timing")
    timing.add_argument(
        "--shapes", default="1x128,16x128", metavar="BxS,...", help="batch x sequence to time (default: 1x128,16x128)"
    )
    timing.add_argument("--warmup", type=int, default=5, metavar="N", help="iterations before timing (default: 5)")
    timing.add_argument(
        "--iterations", type=int, default=30, metavar="N", help="timed iterations a shape (default: 30)"
    )
    timing.add_argument(
        "--max_seconds", type=float, default=60, metavar="N", help="limit a shape, seconds (default: 60)"
    )
    made.add_argument(
        "--per_device_eval_batch_size",
        type=int,
        default=32,
        metavar="N",
        help="rows a batch while scoring (default: 32)",
    )
    add_data(made, "the run's; others need --task")
    return made


def _data(args: Any, engines: Any) -> Any:
    from q8trt.comparison import data_config

    if args.no_accuracy:
        if args.parity:
            raise ConfigError("--parity compares logits on the development set; drop --no_accuracy")
        return None
    return data_config(engines, chosen_data(args))


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    timing = BenchmarkConfig(parse_shapes_list(args.shapes), args.warmup, args.iterations, args.max_seconds)
    from rich.console import Console

    from q8trt.comparison import compare, find_engines
    from q8trt.engine.manifest import PLAN_FILE
    from q8trt.provenance import provenance
    from q8trt.reporting import print_report, write_report

    engines = find_engines(args.engine, args.runs_dir)
    data = _data(args, engines)
    for engine in engines:
        say(f"engine: {engine.folder}")
    origin = provenance(["benchmark.py", *argv])
    report = compare(engines, data, timing, origin, args.backend, args.per_device_eval_batch_size, args.parity)
    print_report(report, Console())
    paths = write_report(args.output_dir or engines[-1].folder.parent, report, args.name)
    # The plan to deploy: a QAT engine's before a calibrated one's before FP32's.
    best = max(engines, key=lambda engine: ("fp32", "", "ptq", "int8").index(engine.manifest.stage))
    plan = best.folder / PLAN_FILE
    if plan.is_file():
        say(f"plan:   {plan}")
    say(f"report: {Path(paths[1])} and {Path(paths[0]).name}")
    return 0
