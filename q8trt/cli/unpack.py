"""`q8trt unpack`: an archive of `q8trt pack` -> the engine folder, after every hash was verified."""

from __future__ import annotations

from typing import Any

from q8trt.cli.options import Parser, say


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="q8trt unpack",
        description="Verify an archive that `q8trt pack` made and lay its engine folder down, whole or not at all. An archive "
        "that is damaged, incomplete or holds anything that its manifest does not list is refused.",
        epilog="example: q8trt unpack engine.q8trt --output_dir engine",
    )
    made.add_argument("archive", metavar="FILE", help="what q8trt pack wrote")
    made.add_argument("--output_dir", metavar="DIR", help="the folder to make (default: FILE without .q8trt)")
    made.add_argument("--overwrite", action="store_true", help="replace an engine that is in the folder already")
    made.add_argument("--sha256", metavar="HEX", help="the SHA-256 that `q8trt pack` printed; refuse any other archive")
    return made


def run(argv: list[str]) -> int:
    """Run the command."""
    args: Any = parser().parse_args(argv)
    from q8trt.deployment.archive import unpack

    say(f"engine: {unpack(args.archive, args.output_dir, args.sha256, args.overwrite)}")
    return 0
