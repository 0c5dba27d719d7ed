"""Print what this machine can do, and which steps run on it."""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.cli.parser import Parser
from q8trt.cli.terminal import say


@dataclass(frozen=True)
class Options:
    """The command has no options."""


PARSER = Parser(Options, "q8trt doctor", __doc__)


def run(argv: list[str]) -> int:
    """Run the command and return 0 if every step will run, else 1."""
    PARSER.read(argv)
    from q8trt.doctor import checks, probe, render, steps

    machine = probe()
    plan = steps(machine)
    say(render(checks(machine), plan))
    return 0 if all(step.runs for step in plan) else 1
