"""List the runs of a folder, newest first, and their engines, with scores. Only run.json and manifests are read.

example: q8trt runs
         q8trt runs --runs_dir elsewhere --json
"""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say, say_json, table_console
from q8trt.console.options import option
from q8trt.runs.run import make_a_run, runs_dir


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    runs_dir: str = runs_dir()
    json: bool = option(False, "print the facts as JSON")


PARSER = Parser(Options, "q8trt runs", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    options: Options = PARSER.read(argv)
    from q8trt.reporting.listing import engines_tables, list_runs, problem_lines, runs_dict, runs_tables
    from q8trt.reporting.terminal import print_rows, print_table

    runs = list_runs(options.runs_dir)
    if options.json:
        say_json(runs_dict(options.runs_dir, runs))
        return 0
    if not runs:
        say(f"no runs under {options.runs_dir}/; make one: {make_a_run(options.runs_dir)}")
        return 0
    console = table_console()
    for wide, narrow in (runs_tables([each for each in runs if not each.problem]), engines_tables(runs)):
        if wide.rows and not any(print_table(console, each, optional=True) for each in (wide, narrow)):
            print_rows(console, wide)
    for line in problem_lines(runs):
        say(line)
    return 0
