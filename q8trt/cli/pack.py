"""`q8trt pack`: an engine folder -> one archive with hashes and a model card."""

from __future__ import annotations

from typing import Any

from q8trt.cli.options import Parser, say
from q8trt.console.commands import command


def parser() -> Parser:
    """The options of the command."""
    made = Parser(
        prog="q8trt pack",
        description="Write an engine folder as one file: manifest, model card, hashes and every file of the manifest. The same "
        "folder gives the same bytes. `q8trt unpack` verifies it and lays the folder down again.",
        epilog="example: q8trt pack runs/NAME/engine\n"
        "         q8trt pack runs/NAME/engine --output sts-b.q8trt --license apache-2.0",
    )
    made.add_argument("engine", metavar="ENGINE_DIR", help="what build_engine.py wrote")
    made.add_argument("--output", metavar="FILE", help="the archive (default: beside the folder, ENGINE_DIR.q8trt)")
    made.add_argument(
        "--license", metavar="TEXT",
        help="the base model's licence, for the model card (default: what the base model's card says, else 'not stated')",
    )  # fmt: skip
    return made


def run(argv: list[str]) -> int:
    """Run the command."""
    args: Any = parser().parse_args(argv)
    from q8trt.deployment.archive import pack

    packed = pack(args.engine, args.output, args.license)
    for name, size in packed.members.items():
        say(f"  {name:24} {size:>13,}")
    say(f"archive: {packed.path}  {packed.bytes / 2**20:.1f} MiB")
    say(f"SHA-256: {packed.sha256}")
    say(f"next: {command('unpack', packed.path, '--output_dir', packed.path.with_suffix('.unpacked'))}")
    return 0
