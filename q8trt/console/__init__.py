"""The console: options and commands, names made fit for a terminal, progress, warnings and signals.

`options` declares options at dataclass fields and `keywords` reads them from keyword arguments; `commands` writes the command
lines that q8trt prints; `names` makes text of others harmless; `progress`, `quiet` and `signals` are what their names say. The
modules need the standard library alone.
"""

from q8trt.console.commands import command
from q8trt.console.names import markdown_code, markdown_text, printable
from q8trt.console.options import at_least, check_options, from_values, group, option, options_of, same_option
from q8trt.console.progress import is_main_process
from q8trt.console.signals import TerminatedError

__all__ = [
    "TerminatedError", "at_least", "check_options", "command", "from_values", "group", "is_main_process", "markdown_code",
    "markdown_text", "option", "options_of", "printable", "same_option",
]  # fmt: skip
