"""Standing warnings of libraries, which no user can act on."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Ignore the warnings, within `warnings.catch_warnings` or for the rest of the process."""
    warnings.filterwarnings("ignore", message="transformers .* is not tested with current version of modelopt")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
