"""Score the engines of a run and time them side by side. Without a GPU, ONNX Runtime runs the same graphs on the CPU, and every
line says so. The exit code is 1 if an engine misses --max_drop or --min_speedup.

example: python benchmark.py
         python benchmark.py --engine runs/NAME/engine --batch_sizes 1,8,32 --seq_lengths 32,128
         python benchmark.py --max_drop 1.0 --min_speedup 1.5           # exit code 1 if an INT8 row misses either
         python benchmark.py --compare runs/A/benchmark.json runs/B/benchmark.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console, warn
from q8trt.console.options import from_values, group, option
from q8trt.errors import ConfigError
from q8trt.evaluation.config import BenchmarkConfig, data_group
from q8trt.files import check_folder, check_report
from q8trt.reporting.gate import Gate, GateResult
from q8trt.runs.run import runs_dir
from q8trt.runtime.timing.config import grid, parse_sizes
from q8trt.tasks.data import DataConfig

if TYPE_CHECKING:
    from q8trt.engine.folder import EngineFolder
    from q8trt.reporting import Report

_KEEP = "choose another --name or --output_dir"
_GRID = "a grid of shapes, instead of --shapes"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    engine: tuple[str, ...] = option(
        (),
        "engine folder; repeat to compare several",
        metavar="DIR",
        repeat=True,
        unset="the engines of the run with the newest engine",
    )
    runs_dir: str = runs_dir()
    output_dir: str | None = option(
        None, "folder of benchmark.json, .md and .html", metavar="DIR", unset="beside the engine"
    )
    name: str | None = option(None, "stem of the files", unset="benchmark, or compare")
    verbose: bool = option(False, "also print the definitions of the columns")
    json: bool = option(False, "print the report as JSON, the last line of stdout (docs/reference/benchmark-schema.md)")
    compare: tuple[str, str] | None = option(
        None,
        "compare two reports and measure nothing; with --output_dir, also write a page and a JSON file",
        metavar=("A.json", "B.json"),
    )
    batch_sizes: tuple[int, ...] = option(
        (), "rows in a batch, such as 1,8,16", metavar="N,...", read=partial(parse_sizes, "--batch_sizes"), group=_GRID
    )
    seq_lengths: tuple[int, ...] = option(
        (), "tokens in a row, such as 32,128", metavar="N,...", read=partial(parse_sizes, "--seq_lengths"), group=_GRID
    )
    gate: Gate = group("gate: exit code 1 if an INT8 row misses it (without INT8 rows, an FP16 row)")
    config: BenchmarkConfig = group("measurements")
    data: DataConfig | None = data_group()

    def __post_init__(self) -> None:
        if self.output_dir is not None:
            check_folder(self.output_dir)
        if self.name is not None and (not self.name or Path(self.name).name != self.name):
            raise ConfigError(
                f"--name {self.name!r}, expected the stem of a file, without a folder: --output_dir names that"
            )
        if bool(self.batch_sizes) != bool(self.seq_lengths):
            raise ConfigError("--batch_sizes and --seq_lengths make a grid together; give both, or --shapes")

    @property
    def measured(self) -> BenchmarkConfig:
        """The configuration of the benchmark, with the shapes of the grid."""
        if not self.batch_sizes:
            return self.config
        timing = replace(self.config.timing, shapes=grid(self.batch_sizes, self.seq_lengths))
        return replace(self.config, timing=timing)

    def stem(self, engines: Sequence[EngineFolder]) -> Path:
        """Return the path of the report without its endings."""
        return Path(self.output_dir or engines[-1].folder.parent) / (self.name or "benchmark")


PARSER = Parser(Options, "benchmark.py", __doc__)


def _compare(options: Options, reports: Sequence[str]) -> int:
    from q8trt.reporting.comparison import side_by_side
    from q8trt.reporting.comparison_page import print_side_by_side, write_side_by_side
    from q8trt.reporting.stored import read_report

    name = options.name or "compare"
    if options.output_dir:
        stem = Path(options.output_dir) / name
        keys = ("only_in_a", "only_in_b")
        check_report(Path(f"{stem}.json"), [Path(f"{stem}.html")], keys=keys, option="--output_dir", hint=_KEEP)
    both = side_by_side(*map(read_report, reports))
    print_side_by_side(both, table_console())
    if options.output_dir:
        page, _ = write_side_by_side(options.output_dir, both, name)
        say(f"report: {page} and {page.with_suffix('.json').name}")
    if options.json:
        say(json.dumps(both.to_dict(), ensure_ascii=False, allow_nan=False))
    return 0


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    typed = PARSER.typed_options(argv)
    options = from_values(Options, typed)
    if options.compare:
        allowed = {"compare", "json", "name", "output_dir"}
        PARSER.check_alone(typed, allowed, "--compare reads two reports and measures nothing")
        return _compare(options, options.compare)
    if "shapes" in typed and options.batch_sizes:
        raise ConfigError("--shapes and the grid of --batch_sizes and --seq_lengths exclude each other; give one")
    config = options.measured
    from q8trt import api
    from q8trt.engine.folder import find_engines
    from q8trt.evaluation.benchmark import check_gate
    from q8trt.evaluation.data import data_config
    from q8trt.reporting.report import check_files

    engines = find_engines(options.engine, options.runs_dir)
    data = data_config(engines, options.data, config.max_eval_samples) if config.accuracy else None
    check_gate(options.gate, engines, data)
    check_files(options.stem(engines))
    for engine in engines:
        say(f"engine: {engine.folder}")
    report = api.benchmark(*engines, config=config, data=data, progress=True, command=["benchmark.py", *argv])
    return _answer(report, engines, options)


def _answer(report: Report, engines: Sequence[EngineFolder], options: Options) -> int:
    """Print the report, write its files, judge it, and return the exit code."""
    from q8trt.engine.manifest import PLAN_FILE
    from q8trt.reporting.report import check_files, print_report, write_report

    print_report(report, table_console(), options.verbose)
    stem, gate = options.stem(engines), options.gate
    check_files(stem)
    if Path(f"{stem}.json").exists():
        say(f"replacing the existing report {stem}.json, .md and .html; --name NAME keeps it")
    paths = write_report(stem.parent, report, stem.name, gate)
    # The plan to deploy is that of a QAT engine, else of a calibrated one, else of FP32.
    best = max(engines, key=lambda engine: ("fp32", "", "ptq", "int8").index(engine.manifest.stage))
    plan = best.folder / PLAN_FILE
    if plan.is_file():
        say(f"plan:   {plan}")
    say(f"report: {Path(paths[2])}, {Path(paths[1]).name} and {Path(paths[0]).name}")
    result = GateResult.of(gate, report) if gate else None
    if result and result.passed:
        say(f"gate:   passed, {result.requirements}")
    if options.json:
        say(json.dumps(report.to_dict(gate), ensure_ascii=False, allow_nan=False))
    if result and not result.passed:
        warn(f"benchmark: gate not passed: {'; '.join(result.failures)}")
        return 1
    return 0
