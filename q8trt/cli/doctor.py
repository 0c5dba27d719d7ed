"""`q8trt doctor`: what this machine can do, and which steps will run."""

from __future__ import annotations

from q8trt.cli.options import Parser, say


def run(argv: list[str]) -> int:
    """Run the command; returns 0 when every step will run, else 1."""
    Parser(prog="q8trt doctor", description="Print what this machine can do, and which steps will run.").parse_args(
        argv
    )
    from q8trt.doctor import checks, probe, render, steps

    machine = probe()
    plan = steps(machine)
    say(render(checks(machine), plan))
    return 0 if all(step.runs for step in plan) else 1
