"""Warnings of libraries that users cannot act on."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Ignore these warnings, within `warnings.catch_warnings` or for the rest of the process.

    TOKENIZERS_PARALLELISM, if unset, becomes "false" in the environment. Otherwise tokenizers warns after a fork.
    """
    warnings.filterwarnings("ignore", message="transformers .* is not tested with current version of modelopt")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
