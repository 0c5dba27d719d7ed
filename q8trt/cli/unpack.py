"""Verify an archive of `q8trt pack` and write its engine folder, completely or not at all. The command refuses an archive that is
damaged or incomplete, or that has a file outside its manifest.

example: q8trt unpack engine.q8trt --output_dir engine
"""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say
from q8trt.console.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    archive: str = option(help="archive that q8trt pack wrote", metavar="FILE", positional=True)
    output_dir: str | None = option(None, "folder to make", metavar="DIR", unset="FILE without .q8trt")
    overwrite: bool = option(False, "replace an engine that is in the folder already")
    sha256: str | None = option(None, "the SHA-256 that `q8trt pack` printed; refuse any other archive", metavar="HEX")


PARSER = Parser(Options, "q8trt unpack", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    from q8trt.deployment.archive import unpack

    say(f"engine: {unpack(options.archive, options.output_dir, options.sha256, options.overwrite)}")
    return 0
