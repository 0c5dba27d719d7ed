"""The console: names and commands as they are printed, progress, and signals."""

__all__ = ["commands", "keywords", "names", "options", "progress", "quiet", "signals"]
