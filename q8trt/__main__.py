"""The entry points of `python -m q8trt`, the command `q8trt`, and the scripts beside the package."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run `q8trt` with the arguments of the process and return the exit code."""
    _silence_interrupts()
    from q8trt.cli.main import main

    return main()


def run(command: str) -> int:
    """Run one command with the arguments of the process and return the exit code."""
    _silence_interrupts()
    from q8trt.cli.main import run_command

    return run_command(command)


def _silence_interrupts() -> None:
    """Let Ctrl-C end the process without a traceback until `q8trt.cli.main` handles it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
