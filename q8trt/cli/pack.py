"""Write an engine folder as one file: manifest, model card, hashes and every file of the manifest. The same folder gives
the same bytes. `q8trt unpack` verifies the file and restores the folder.

example: q8trt pack runs/NAME/engine
         q8trt pack runs/NAME/engine --output sts-b.q8trt --license apache-2.0
"""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say
from q8trt.console.commands import command
from q8trt.console.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    engine: str = option(help="engine folder that build_engine.py wrote", metavar="ENGINE_DIR", positional=True)
    output: str | None = option(None, "the archive", metavar="FILE", unset="beside the folder, ENGINE_DIR.q8trt")
    license: str | None = option(
        None,
        "license of the base model, for the model card",
        unset="that of the base model's card, else 'not stated'",
    )


PARSER = Parser(Options, "q8trt pack", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    from q8trt.deployment.archive import pack

    packed = pack(options.engine, options.output, options.license)
    for name, size in packed.members.items():
        say(f"  {name:24} {size:>13,}")
    say(f"archive: {packed.path}  {packed.bytes / 2**20:.1f} MiB")
    say(f"SHA-256: {packed.sha256}")
    say(f"next: {command('unpack', packed.path, '--output_dir', packed.path.with_suffix('.unpacked'))}")
    return 0
