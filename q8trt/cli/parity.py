"""`q8trt parity`: the stages from the FP32 model to the engine side by side, and the first layer where two of them part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8trt.cli.options import Parser, add_data, add_runs_dir, chosen_data, say
from q8trt.cli.terminal import table_console


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="q8trt parity",
        description="Run torch FP32, torch fake-quant, ONNX Runtime and, where it can run, the TensorRT engine on the same rows: "
        "metric and logit differences of each, and the first layer where two of them part. Exit code 0: they agree; 1: they "
        "part; 2: bad input.",
        epilog="example: q8trt parity\n         q8trt parity runs/NAME/engine --samples 64 --tolerance 0.02",
    )
    made.add_argument(
        "paths", nargs="*", metavar="RUN_OR_ENGINE", help="runs or engine folders (default: the newest run's engines)"
    )
    made.add_argument("--engine", action="append", default=[], metavar="DIR", help="the same, in benchmark.py's words")
    add_runs_dir(made)
    made.add_argument(
        "--samples", type=int, metavar="N", help="development rows (default: all of them, and the first 256 at batch 1)"
    )
    made.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[1, 32], metavar="N",
        help="rows a batch; 1 runs without padding (default: 1 32)",
    )  # fmt: skip
    made.add_argument(
        "--tolerance", type=float, metavar="X",
        help="relative error that a layer may add between stages of the same arithmetic (default: 0.05 for INT8, 0.3 with "
        "FP16 elsewhere, 0.02 for FP16, 0.005 for FP32)",
    )  # fmt: skip
    made.add_argument(
        "--quantization_tolerance", type=float, default=0.5, metavar="X",
        help="relative error that quantizing may add to a layer (default: 0.5)",
    )  # fmt: skip
    made.add_argument("--json", metavar="PATH", help="where the figures go (default: parity.json beside the engine)")
    add_data(made, "the run's; others need --task")
    return made


def run(argv: list[str]) -> int:
    """Run the command; returns 0 when all stages agree, 1 when two of them part."""
    args: Any = parser().parse_args(argv)

    from q8trt.evaluation.benchmark import data_config
    from q8trt.evaluation.parity import ParityConfig, check_parity, engines_of
    from q8trt.files import check_report, write_json
    from q8trt.hardware.provenance import provenance
    from q8trt.reporting.parity_table import print_parity, report_dict

    config = ParityConfig(tuple(args.batch_sizes), args.samples, args.tolerance, args.quantization_tolerance)
    engines = engines_of([*args.paths, *args.engine], args.runs_dir)
    path = Path(args.json or engines[-1].folder.parent / "parity.json")
    check_report(path, keys=("schema", "agrees", "engines"), option="--json")
    data, origin = data_config(engines, chosen_data(args)), provenance(["q8trt", "parity", *argv])
    found = []
    for engine in engines:
        found.append(check_parity(engine, data, config))
        print_parity(found[-1], table_console())
        say()
    write_json(path, report_dict(found, origin))
    say(f"report: {path}")
    return 0 if all(engine.agrees for engine in found) else 1
