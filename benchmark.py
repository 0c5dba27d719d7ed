"""Entry point: `python benchmark.py --help`. The work is in the package; this only calls it."""

import sys

from q8trt.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("benchmark"))
