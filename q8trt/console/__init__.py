"""The console: options and commands, safe printing of names, progress, warnings and signals.

`options` declares options as dataclass fields, and `keywords` reads them from keyword arguments. `commands` writes the command
lines that q8trt prints. `children` describes Python processes that q8trt starts. `names` makes text from files safe to print,
and `counts` writes numbers with their nouns. `progress` shows progress, `quiet` silences libraries, and `signals` handles
SIGINT and SIGTERM.
"""

__all__ = ["children", "commands", "counts", "keywords", "names", "options", "progress", "quiet", "signals"]
