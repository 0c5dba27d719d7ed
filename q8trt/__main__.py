"""`python -m q8trt`: the same as the command `q8trt`."""

import sys

from q8trt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
