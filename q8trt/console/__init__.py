"""The console: options and commands, names made fit for a terminal, progress, warnings and signals.

`options` declares options at dataclass fields, `keywords` reads them from keyword arguments; `commands` writes the command
lines that q8trt prints; `children` starts Python processes; `names` makes text of others harmless; `progress`, `quiet` and
`signals` are what their names say.
"""

__all__ = ["children", "commands", "keywords", "names", "options", "progress", "quiet", "signals"]
