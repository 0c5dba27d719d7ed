"""Print the facts of a run, of a checkpoint in a run, or of an engine folder. The command reads only run.json and manifests. It
hashes no file and loads no model.

example: q8trt info runs/NAME
         q8trt info runs/NAME/int8
         q8trt info runs/NAME/engine --json
"""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say_json, table_console
from q8trt.console.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    folder: str = option(help="a run, a checkpoint of a run, or an engine folder", metavar="FOLDER", positional=True)
    json: bool = option(False, "print the facts as JSON")


PARSER = Parser(Options, "q8trt info", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    from q8trt.reporting.folder_info import info_facts, read_info
    from q8trt.reporting.terminal import print_facts

    info = read_info(options.folder)
    if options.json:
        say_json(info.to_dict())
    else:
        print_facts(table_console(), info_facts(info))
    return 0
