"""Run torch FP32, torch fake-quant, ONNX Runtime and, if it can run here, the TensorRT engine on the same rows. The command
prints the metric and the logit differences of each, and the first layer in which two of them differ. The exit code is 0 if
they agree, 1 if they differ, and 2 for bad input.

example: q8trt parity
         q8trt parity runs/NAME/engine --samples 64 --tolerance 0.02
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console
from q8trt.console.options import group, option
from q8trt.evaluation.config import ParityConfig, data_group
from q8trt.runs.run import runs_dir
from q8trt.tasks.data import DataConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    paths: tuple[str, ...] = option(
        (),
        "runs or engine folders",
        metavar="RUN_OR_ENGINE",
        positional=True,
        unset="the engines of the run with the newest engine",
    )
    engine: tuple[str, ...] = option((), "engine folder, as for benchmark.py", metavar="DIR", repeat=True)
    runs_dir: str = runs_dir()
    json: str | None = option(None, "file of the figures", metavar="PATH", unset="parity.json beside the engine")
    config: ParityConfig = group("comparison")
    data: DataConfig | None = data_group()


PARSER = Parser(Options, "q8trt parity", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return 0 if all stages agree, 1 if two of them part."""
    options: Options = PARSER.read(argv)
    from q8trt import api
    from q8trt.evaluation.data import data_config
    from q8trt.evaluation.parity import engines_of
    from q8trt.files import check_report, write_json
    from q8trt.hardware.provenance import provenance
    from q8trt.reporting.parity import parity_dict, print_parity

    engines = engines_of([*options.paths, *options.engine], options.runs_dir)
    path = Path(options.json or engines[-1].folder.parent / "parity.json")
    check_report(path, keys=("schema", "agrees", "engines"), option="--json")
    data = data_config(engines, options.data, options.config.max_eval_samples)
    origin = provenance(["q8trt", "parity", *argv])
    results = []
    for engine in engines:
        results.append(api.parity(engine, config=options.config, data=data, progress=True)[0])
        print_parity(results[-1], table_console(), origin["hardware"])
        say()
    write_json(path, parity_dict(results, origin))
    say(f"report: {path}")
    return 0 if all(result.agrees for result in results) else 1
