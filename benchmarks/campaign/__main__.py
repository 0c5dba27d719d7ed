"""``python -m benchmarks.campaign [AREA ...] [options]``: see the package's docstring."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

#: Modules of the package that are no areas.
_PARTS = ("__init__", "__main__", "children", "driver", "mutations", "run", "sample")


def main() -> int:
    """Run the named areas, or all."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _PARTS)
    named = [argument for argument in sys.argv[1:] if argument in known]
    options = [argument for argument in sys.argv[1:] if argument not in known]
    return max(importlib.import_module(f"benchmarks.campaign.{area}").main(options) or 0 for area in named or known)


if __name__ == "__main__":
    sys.exit(main())
