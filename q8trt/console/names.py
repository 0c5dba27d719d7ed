"""Names from files, made safe for a terminal and for Markdown.

Names of labels, columns, nodes and files come from others. They must not control the terminal that shows them, and must not
become HTML, a link or an image in a report.
"""

from __future__ import annotations

import re
from html import escape

#: Characters that control a terminal or disguise text: control characters, marks of writing direction, line separators,
#: surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: Characters that start a link, an image, emphasis, code or an escape in Markdown. An underscore within a word has no effect.
_MARKUP = re.compile(r"[\\`*\[\]]|(?<!\w)_|_(?!\w)")


def printable(text: str, keep: str = "") -> str:
    """Return `text` with backslash escapes for the characters that control a terminal.

    Args:
        text: any text.
        keep: characters that are not escaped, such as a newline.
    """
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


def one_line(text: object) -> str:
    """Return `text` in one printable line. Messages of libraries quote names from files and may have several lines."""
    return printable(" ".join(str(text).split()))


def markdown_text(text: str) -> str:
    """Return `text` as one line of Markdown, with HTML and the marks of links, images, emphasis and code escaped."""
    return _MARKUP.sub(r"\\\g<0>", escape(printable(_without_line_ends(text)), quote=False))


def markdown_code(text: str) -> str:
    """Return `text` as one line in a code span of Markdown."""
    line = printable(_without_line_ends(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if len(fence) > 1 or not line.strip() else ""
    return f"{fence}{space}{line}{space}{fence}"


def _without_line_ends(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text)
