"""The command line: each command parses, calls and prints."""

__all__ = ["main"]
