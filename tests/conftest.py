"""Fixtures that more than one test module uses."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder of official GLUE TSV files beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "glue"
    if not folder.is_dir():
        pytest.skip("no GLUE data beside the checkout (shared/glue)")
    return folder
