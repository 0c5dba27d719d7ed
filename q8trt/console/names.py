"""Names from files, made fit for a terminal and for Markdown.

A label, a column, a node of a graph, a file: someone else chose these names. They must not act on the terminal that shows
them, nor become HTML, a link or an image in a report.
"""

from __future__ import annotations

import re
from html import escape

#: Characters that act on a terminal or disguise a text: controls, marks of writing direction, line separators, surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: Characters that start a link, an image, emphasis or code in Markdown. An underscore within a word does nothing.
_MARKUP = re.compile(r"[\\`*\[\]]|(?<!\w)_|_(?!\w)")


def printable(text: str, keep: str = "") -> str:
    """Return `text` with the characters that a terminal would obey as backslash escapes.

    Args:
        text: any text.
        keep: characters that stay as they are, such as a newline.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


def one_line(text: object) -> str:
    """Return `text` in one line that a terminal shows as it is: libraries quote names from files, and span lines."""
    return printable(" ".join(str(text).split()))


def markdown_text(text: str) -> str:
    """Return `text` as Markdown that shows it in one line, without HTML, links or emphasis in it."""
    return _MARKUP.sub(r"\\\g<0>", escape(printable(_without_line_ends(text)), quote=False))


def markdown_code(text: str) -> str:
    """Return `text` as a code span of Markdown, in one line."""
    line = printable(_without_line_ends(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if len(fence) > 1 or not line.strip() else ""
    return f"{fence}{space}{line}{space}{fence}"


def _without_line_ends(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text)
