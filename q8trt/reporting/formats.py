"""Numbers as text, the same on the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float, spec: str) -> str:
    """Return `value` formatted by `spec`; a value that rounds to zero has no minus sign."""
    text = format(value, spec)
    return text.replace("-", "+" if "+" in spec else "") if float(text) == 0 else text


def ms(value: float) -> str:
    """Return milliseconds: two decimals below 100, else one."""
    return number(value, ".2f" if value < 100 else ".1f")


def x100(fraction: float) -> str:
    """Return a fraction times 100 with two decimals."""
    return number(100 * fraction, ".2f")


def rate(value: float) -> str:
    """Return events per second: two decimals below 10, one below 100, else none."""
    return number(value, ".0f" if value >= 100 else ".1f" if value >= 10 else ".2f")


def tops(value: float) -> str:
    """Return 10^12 operations a second: three decimals below 10, else one."""
    return number(value, ".3f" if value < 10 else ".1f")


def percent(fraction: float) -> str:
    """Return ``"54%"``."""
    return f"{100 * fraction:.0f}%"


def error_percent(fraction: float) -> str:
    """Return a relative error: ``"13%"``, below 10% with two significant digits ``"0.32%"``, ``"<0.001%"``, or ``"0"``."""
    if fraction == 0:
        return "0"
    return "<0.001%" if fraction < 1e-5 else f"{100 * fraction:.2g}%" if fraction < 0.1 else percent(fraction)


def times(ratio: float) -> str:
    """Return ``"1.52x"``; below 0.1 (such as a CPU over a GPU) two significant digits, ``"0.012x"``."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def mib(size: int) -> str:
    """Return a number of bytes as ``"3.5 MiB"``."""
    return f"{size / 2**20:.1f} MiB"


def enumeration(items: Sequence[str]) -> str:
    """Return ``"a, b and c"``."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def switch(is_on: bool) -> str:
    """Return ``"on"`` or ``"off"``."""
    return "on" if is_on else "off"
