"""Forecast what TensorRT does with an ONNX graph: the GEMMs, BMMs and residual Adds that run in INT8, the attentions that it can
fuse, the reasons for those that it cannot, and the operations that stay in FP32. The command reads only the file, which may
come from another tool. The exit code is 0 without a finding at --level or worse, 1 with one, and 2 for bad input.

example: q8trt lint model.onnx --max_shapes 32x128
         q8trt lint runs/NAME/engine --level error
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, table_console
from q8trt.console.options import option
from q8trt.engine.shapes import Shape, parse_shapes, show
from q8trt.lint import Level


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    path: str = option(
        help="an ONNX file, or an engine folder with its manifest", metavar="MODEL.onnx|ENGINE_DIR", positional=True
    )
    level: Level = option("warning", "exit with 1 on a finding of this level or worse; all findings are shown")
    max_shapes: Shape | None = option(
        None,
        "largest batch x sequence of the profile, such as 32x128",
        metavar="BxS",
        read=parse_shapes,
        show=show,
        unset="an engine folder's own; none for a file",
    )
    json: bool = option(False, "print the whole report as JSON")
    output: str | None = option(None, "also write the report as JSON to FILE", metavar="FILE")


PARSER = Parser(Options, "q8trt lint", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return 1 if a finding is at `--level` or worse, else 0."""
    options: Options = PARSER.read(argv)
    import json

    from q8trt import api
    from q8trt.files import check_report, write_json
    from q8trt.reporting.lint_report import print_report

    if options.output:
        check_report(Path(options.output), keys=("findings", "forecast"), option="--output")
    report = api.lint_model(options.path, options.max_shapes)
    if options.output:
        write_json(options.output, report.to_dict())
    if options.json:
        say(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_report(report, table_console())
    return 1 if report.reaches(options.level) else 0
