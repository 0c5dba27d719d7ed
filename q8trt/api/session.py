"""Parts that all functions of the API share: progress, warnings, errors and the command line for the record."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from q8trt.console.progress import Display, shown_by
from q8trt.console.quiet import quiet_libraries
from q8trt.errors import MissingPackageError
from q8trt.hardware.packages import install_with_extra

AnyPath = str | Path
Messages = Callable[[str], object]


@contextlib.contextmanager
def session(progress: bool | Display) -> Iterator[None]:
    """Show progress, silence library warnings, and turn a missing package into an error that names the command to install it."""
    with warnings.catch_warnings(), shown_by(progress):
        quiet_libraries()
        try:
            yield
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "q8trt":
                raise
            raise MissingPackageError(f"{error.name} is not installed", install_with_extra(error.name)) from error


def words_of(command: Sequence[str], name: str, keywords: Mapping[str, Any]) -> list[str]:
    """Return the words of the command line, or of the call, for the record."""
    return list(command) or [f"q8trt.{name}", *(f"{key}={value}" for key, value in keywords.items())]


def silent(_: str) -> None:
    """Ignore a message."""
