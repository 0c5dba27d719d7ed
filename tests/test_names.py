"""Names from files do not act on a terminal, and are no markup in a report."""

from __future__ import annotations

import io

import pytest

from q8trt.cli.terminal import say, table_console, warn
from q8trt.console.names import markdown_code, markdown_text, printable

HOSTILE = "\x1b[2J\rred\x07\u202egpj\x9b31m\ud800"
SHOWN = r"\x1b[2J\rred\x07\u202egpj\x9b31m\ud800"


def test_what_a_terminal_obeys_becomes_an_escape() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("日本語 é 👩‍👩‍👧 naïve\tx\n", keep="\n") == "日本語 é 👩‍👩‍👧 naïve\\tx\n"


def test_commands_print_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a\n{HOSTILE}")
    warn(HOSTILE)
    assert capsys.readouterr() == (f"a\n{SHOWN}\n", f"{SHOWN}\n")


def test_log_records_hold_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    from q8trt.cli.main import run_command

    assert run_command("doctor", ["--x"]) == 2  # prepares the log
    # Without the half surrogate: pytest keeps the record for its report, and a worker cannot send it.
    logging.getLogger("q8trt.console.names").warning("%s", HOSTILE.replace("\ud800", ""))
    assert capsys.readouterr().err.splitlines()[-1] == SHOWN.replace(r"\ud800", "")


def test_a_table_shows_names_as_they_are() -> None:
    from rich.table import Table

    file = io.StringIO()
    table = Table("[bold]head", box=None)
    table.add_row("[/] [red]x[/red] :smile:")
    table.add_row(HOSTILE)
    table_console(file=file, width=80).print(table)
    text = file.getvalue()
    assert "[bold]head" in text
    assert "[/] [red]x[/red] :smile:" in text
    assert r"\x1b[2Jred\u202egpj" in text
    assert printable(text, keep="\n") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("![a](http://x) [b](x)", r"!\[a\](http://x) \[b\](x)"),
        ("`rm` *x* a_b _c_", r"\`rm\` \*x\* a_b \_c\_"),
        ("a\n\n# head", "a # head"),
        ("\x1b[31m & co", r"\\x1b\[31m &amp; co"),
        ("ONNX Runtime, CPU, int8", "ONNX Runtime, CPU, int8"),
    ],
)
def test_markdown_shows_a_name_and_nothing_more(text: str, expected: str) -> None:
    assert markdown_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a<b>", "`a<b>`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("x\ny", "`x y`"), ("", "`  `")],
)
def test_a_code_span_cannot_be_left(text: str, expected: str) -> None:
    assert markdown_code(text) == expected
