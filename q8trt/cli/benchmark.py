"""`benchmark.py`, `q8trt benchmark`: newest engine -> accuracy on the development set, latency, throughput, report.

Exit codes beside those of every command: 1 where --max_drop or --min_speedup is not met.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from q8trt.cli.options import Parser, add_data, add_runs_dir, chosen_data, say, warn
from q8trt.cli.terminal import table_console
from q8trt.errors import ConfigError
from q8trt.files import check_folder, check_report
from q8trt.runtime.timing.config import BenchmarkConfig, grid, parse_shapes_list, parse_sizes

_KEEP = "choose another --name or --output_dir"


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="benchmark.py",
        description="Score and time the newest engine beside the other engines of its run; without a GPU, ONNX Runtime runs "
        "the same graphs on the CPU and every line says so.",
        epilog="example: python benchmark.py\n"
        "         python benchmark.py --engine runs/NAME/engine --batch_sizes 1,8,32 --seq_lengths 32,128\n"
        "         python benchmark.py --max_drop 1.0 --min_speedup 1.5           # exit code 1 where that is not met\n"
        "         python benchmark.py --compare runs/A/benchmark.json runs/B/benchmark.json",
    )
    made.add_argument(
        "--engine", action="append", default=[], metavar="DIR", help="engine folder; repeat to compare several"
    )
    add_runs_dir(made)
    made.add_argument(
        "--backend", metavar="NAME", help="tensorrt, tensorrt_rtx or onnxruntime (default: the best that runs here)"
    )
    made.add_argument("--no_accuracy", action="store_true", help="time only")
    made.add_argument(
        "--no_layer_times", action="store_true", help="do not profile the layers of each engine, at the largest shape"
    )
    made.add_argument("--parity", action="store_true", help="also state how far logits are from the torch checkpoint's")
    made.add_argument(
        "--output_dir", metavar="DIR", help="where benchmark.json, .md and .html go (default: beside the engine)"
    )
    made.add_argument("--name", metavar="TEXT", help="stem of the files (default: benchmark, or compare)")
    made.add_argument(
        "--json",
        action="store_true",
        help="print the report as JSON, the last line of stdout (docs/benchmark-schema.md)",
    )
    made.add_argument(
        "--compare",
        nargs=2,
        metavar=("A.json", "B.json"),
        help="put two reports side by side; nothing is measured; --output_dir also takes a page and a JSON file of it",
    )
    gate = made.add_argument_group("gate: exit code 1 where a row other than FP32's does not pass")
    gate.add_argument(
        "--max_drop", type=float, metavar="X", help="points of the main metric that may be lost against FP32"
    )
    gate.add_argument("--min_speedup", type=float, metavar="X", help="times as fast as FP32, at each timed shape")
    timing = made.add_argument_group("timing")
    timing.add_argument(
        "--shapes", default="1x128,16x128", metavar="BxS,...", help="batch x sequence to time (default: 1x128,16x128)"
    )
    timing.add_argument("--batch_sizes", metavar="N,...", help="a grid instead of --shapes, with --seq_lengths: 1,8,16")
    timing.add_argument("--seq_lengths", metavar="N,...", help="tokens a row, of the grid: 32,128")
    timing.add_argument("--warmup", type=int, default=5, metavar="N", help="iterations before timing (default: 5)")
    timing.add_argument(
        "--iterations", type=int, default=30, metavar="N", help="timed iterations a shape, at least (default: 30)"
    )
    timing.add_argument(
        "--duration", type=float, default=0.0, metavar="S", help="and at least so many seconds a shape (default: 0)"
    )
    timing.add_argument(
        "--max_seconds", type=float, default=60, metavar="N", help="limit a shape, seconds (default: 60)"
    )
    plans = made.add_argument_group("plans (TensorRT and TensorRT-RTX)")
    plans.add_argument(
        "--no_cuda_graph", action="store_true", help="launch kernel by kernel (default: each shape from a CUDA graph)"
    )
    plans.add_argument(
        "--runtime_cache", metavar="DIR",
        help="folder that keeps what TensorRT-RTX compiles at run time (default: beside the plan)",
    )  # fmt: skip
    lengths = made.add_argument_group("development set")
    lengths.add_argument(
        "--per_device_eval_batch_size", type=int, default=32, metavar="N", help="rows a batch (default: 32)"
    )
    lengths.add_argument(
        "--buckets", default="16,32,64,128,256,512", metavar="N,...",
        help="lengths that batches are padded to, as against fixed length (default: 16,32,...,512)",
    )  # fmt: skip
    add_data(made, "the run's; others need --task")
    return made


def _check_output(args: Any) -> None:
    """Refuse what could not be written, before the minutes that measuring takes."""
    if args.output_dir is not None:
        check_folder(args.output_dir)
    if args.name is not None and (not args.name or Path(args.name).name != args.name):
        raise ConfigError(
            f"--name {args.name!r}, expected the stem of a file, without a folder: --output_dir names that"
        )


def _shapes(args: Any, given: set[str]) -> tuple[tuple[int, int], ...]:
    if args.batch_sizes is None and args.seq_lengths is None:
        return parse_shapes_list(args.shapes)
    if args.batch_sizes is None or args.seq_lengths is None:
        raise ConfigError("--batch_sizes and --seq_lengths make a grid together; give both, or --shapes")
    if "shapes" in given:
        raise ConfigError("--shapes and the grid of --batch_sizes and --seq_lengths exclude each other; give one")
    return grid(parse_sizes("--batch_sizes", args.batch_sizes), parse_sizes("--seq_lengths", args.seq_lengths))


def _data(args: Any, engines: Any) -> Any:
    from q8trt.evaluation.benchmark import data_config

    if args.no_accuracy:
        if args.parity:
            raise ConfigError("--parity compares logits on the development set; drop --no_accuracy")
        return None
    return data_config(engines, chosen_data(args))


def _compare(args: Any) -> int:
    from q8trt.reporting.comparison import read_report, side_by_side
    from q8trt.reporting.comparison_page import print_side_by_side, write_side_by_side

    if args.output_dir:
        stem = Path(args.output_dir) / (args.name or "compare")
        keys = ("only_in_a", "only_in_b")
        check_report(Path(f"{stem}.json"), [Path(f"{stem}.html")], keys=keys, option="--output_dir", hint=_KEEP)
    both = side_by_side(*map(read_report, args.compare))
    print_side_by_side(both, table_console())
    if args.output_dir:
        page, _ = write_side_by_side(args.output_dir, both, args.name or "compare")
        say(f"report: {page} and {page.with_suffix('.json').name}")
    if args.json:
        say(json.dumps(both.to_dict(), ensure_ascii=False, allow_nan=False))
    return 0


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    made = parser()
    args = made.parse_args(argv)
    _check_output(args)
    if args.compare:
        extra = sorted(made.given(argv) - {"compare", "json", "name", "output_dir"})
        if extra:
            raise ConfigError(f"--compare reads two reports and measures nothing; drop --{extra[0]}")
        return _compare(args)
    shapes = _shapes(args, made.given(argv))
    timing = BenchmarkConfig(shapes, args.warmup, args.iterations, args.duration, args.max_seconds)
    buckets = parse_sizes("--buckets", args.buckets)
    batch_size = args.per_device_eval_batch_size
    if batch_size < 1:
        raise ConfigError(f"--per_device_eval_batch_size {batch_size}, expected 1 or more")
    from q8trt.engine.folder import find_engines
    from q8trt.evaluation.benchmark import OPTIONS, check_gate, compare
    from q8trt.hardware.provenance import provenance
    from q8trt.reporting import Gate

    gate = Gate(args.max_drop, args.min_speedup)
    engines = find_engines(args.engine, args.runs_dir)
    data = _data(args, engines)
    check_gate(gate, engines, data)
    _check_report(_stem(args, engines))
    for engine in engines:
        say(f"engine: {engine.folder}")
    origin = provenance(["benchmark.py", *argv])
    options = replace(OPTIONS, cuda_graph=not args.no_cuda_graph, runtime_cache=args.runtime_cache)
    report = compare(
        engines, data, timing, origin, args.backend, batch_size, args.parity, buckets, options, not args.no_layer_times
    )
    return _answer(report, engines, gate, args)


def _stem(args: Any, engines: Any) -> Path:
    """Return the path of the report without its endings."""
    return Path(args.output_dir or engines[-1].folder.parent) / (args.name or "benchmark")


def _check_report(stem: Path) -> None:
    """Raise ConfigError where the report would replace files that are not an earlier report."""
    others = [Path(f"{stem}.md"), Path(f"{stem}.html")]
    check_report(
        Path(f"{stem}.json"), others, keys=("schema", "rows", "main_metric"), option="--output_dir", hint=_KEEP
    )


def _answer(report: Any, engines: Any, gate: Any, args: Any) -> int:
    """Print the report, write its files, and judge it."""

    from q8trt.engine.manifest import PLAN_FILE
    from q8trt.reporting import print_report, report_dict, write_report

    print_report(report, table_console())
    stem = _stem(args, engines)
    _check_report(stem)
    if Path(f"{stem}.json").exists():
        say(f"replacing the report that is there already, {stem}.json, .md and .html; --name NAME keeps it")
    paths = write_report(stem.parent, report, stem.name, gate)
    # The plan to deploy: a QAT engine's before a calibrated one's before FP32's.
    best = max(engines, key=lambda engine: ("fp32", "", "ptq", "int8").index(engine.manifest.stage))
    plan = best.folder / PLAN_FILE
    if plan.is_file():
        say(f"plan:   {plan}")
    say(f"report: {Path(paths[2])}, {Path(paths[1]).name} and {Path(paths[0]).name}")
    failures = gate.failures(report) if gate else []
    if gate and not failures:
        say("gate:   passed")
    if args.json:
        say(json.dumps(report_dict(report, gate), ensure_ascii=False, allow_nan=False))
    if failures:
        warn(f"benchmark: gate not passed: {'; '.join(failures)}")
    return 1 if failures else 0
