"""Entry point: `python calibrate.py --help`. The work is in the package; this only calls it."""

import sys

from q8trt.__main__ import run

if __name__ == "__main__":
    sys.exit(run("calibrate"))
