"""Counts in sentences."""


def plural(count: int, noun: str, separator: str = "") -> str:
    """Return ``"1 row"`` or ``"2 rows"``; `separator` is the separator of thousands, "," or ""."""
    return f"{count:{separator}} {noun}{'' if count == 1 else 's'}"
