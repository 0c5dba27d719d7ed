"""`q8trt lint`: what TensorRT will do with an ONNX graph, block by block, and what keeps it from doing better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from q8trt.cli.options import Parser, say
from q8trt.cli.terminal import table_console

_LEVELS = ("error", "warning", "info")  # q8trt.lint.LEVELS; spelled out, so that --help imports nothing


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="q8trt lint",
        description="Explain, from the file alone, what TensorRT will do with an ONNX graph: which GEMMs, BMMs and residual "
        "Adds run in INT8, which attentions can be fused or why not, what stays in FP32. Also reads files that other tools "
        "wrote. Exit code 0: no finding at --level or worse; 1: there is one; 2: bad input.",
        epilog="example: q8trt lint model.onnx --max_shapes 32x128\n         q8trt lint runs/NAME/engine --level error",
    )
    made.add_argument(
        "path", metavar="MODEL.onnx|ENGINE_DIR", help="an ONNX file, or an engine folder with its manifest"
    )
    made.add_argument(
        "--level", choices=_LEVELS, default="warning",
        help="exit with 1 on a finding of this level or worse (default: warning); all findings are shown",
    )  # fmt: skip
    made.add_argument(
        "--max_shapes", metavar="BxS",
        help="the profile's largest batch x sequence, such as 32x128 (default: an engine folder's own; none for a file)",
    )  # fmt: skip
    made.add_argument("--json", action="store_true", help="print the whole report as JSON")
    made.add_argument("--output", metavar="FILE", help="also write the report as JSON to FILE")
    return made


def run(argv: list[str]) -> int:
    """Run the command; returns 1 when a finding is at `--level` or worse, else 0."""
    args: Any = parser().parse_args(argv)
    import json

    from q8trt.engine.shapes import parse_shapes
    from q8trt.files import check_report, write_json
    from q8trt.lint import LintConfig, lint
    from q8trt.lint.render import print_report

    if args.output:
        check_report(Path(args.output), keys=("findings", "forecast"), option="--output")
    path, shapes = _model(Path(args.path))
    if args.max_shapes is not None:
        shapes = parse_shapes(args.max_shapes)
    report = lint(path, LintConfig(max_shapes=shapes))
    if args.output:
        write_json(args.output, report.to_dict())
    if args.json:
        say(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_report(report, table_console())
    return 1 if report.reaches(args.level) else 0


def _model(path: Path) -> tuple[Path, tuple[int, int] | None]:
    """The ONNX file of an engine folder and the largest shape of its profile; a file as it is, with none."""
    from q8trt.engine.manifest import ONNX_FILE, load_manifest

    if not path.is_dir():
        return path, None
    return path / ONNX_FILE, load_manifest(path, verify=False).largest_shape
