"""Standard streams that accept any text, and the lines and tables that a command prints."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from q8trt.console.names import printable
from q8trt.console.progress import is_main_process

if TYPE_CHECKING:
    from rich.console import Console


def open_streams() -> None:
    """Open the standard streams that the process lacks, and let them print any character.

    Otherwise the next file that is opened could get descriptor 1 or 2, and printed text would go into it.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), write_through=True))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def flushed_output() -> Iterator[None]:
    """Flush stdout after the block, also after --help. Raises OSError, for example if stdout is a file on a full disk."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def discard_output() -> None:
    """Flush stdout, and drop the text that it cannot write, so that the interpreter does not try again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str = "") -> None:
    """Print a line of the command's answer, from the main process only."""
    if is_main_process():
        print(printable(text, "\n\t"), flush=True)


def say_json(data: Any) -> None:
    """Print data as JSON in ASCII, with control characters escaped."""
    say(json.dumps(data, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def warn(text: str) -> None:
    """Print a remark on stderr."""
    print(printable(text, "\n\t"), file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """Print an error in one line on stderr, if stderr still exists."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(" ".join(text.splitlines())), file=sys.stderr, flush=True)


def table_console(**options: Any) -> Console:
    """Return a rich console without markup and emoji codes, which escapes control characters in names."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text, "\n"), style, control)

    return Plain(markup=False, emoji=False, **options)


class StderrHandler(logging.StreamHandler[TextIO]):
    """A handler of log records that writes to the current `sys.stderr`, which may change between commands."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current `sys.stderr`."""
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's message with control characters escaped."""
        return printable(super().format(record), "\n\t")
