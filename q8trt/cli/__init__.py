"""The command line. Each command parses its options, calls the API and prints the result."""

__all__ = ["main"]
