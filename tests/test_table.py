"""One table, three renderers: the same cells on the terminal, in Markdown and in HTML."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from q8trt.console.counts import plural
from q8trt.reporting import Column, Phrase, Table, words
from q8trt.reporting.formats import error_percent, ms, number, rate, times
from q8trt.reporting.html import render
from q8trt.reporting.markdown import Markdown, markdown_section, markdown_table
from q8trt.reporting.terminal import print_table

COLUMNS = (
    words("name", wraps=True),
    Column("batch x\nsequence"),
    Column("median", "ms", format=ms, missing="not timed"),
    Column("mean", "ms", format=ms, rank=1),
    Column("vs", "FP32", format="+.2f"),
    words("result"),
)
ROWS = (
    ("A <b> model | of many words", "16x128", 1.234, 1000.0, -0.001, Phrase("passed", "good")),
    ("[red]B", "1x8", None, 2.0, 0.5, "it passed"),
)
TABLE = Table(COLUMNS, ROWS, "ms: a legend.", "A title")


def printed(width: int, table: Table = TABLE, optional: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, markup=False)
    print_table(console, table, optional)
    return console.file.getvalue()  # type: ignore[attr-defined]


def page(table: Table = TABLE) -> str:
    """The comparison's template is the smallest."""
    return render(
        "comparison",
        title="t",
        head=Table((words(""),), ()),
        figures=[],
        tables=[table],
        without_partner=[],
        provenance={},
    )


def test_a_small_ratio_is_not_rounded_to_zero() -> None:
    assert [times(ratio) for ratio in (1.524, 0.1, 0.0028)] == ["1.52x", "0.10x", "0.0028x"]


def test_every_renderer_has_the_same_texts() -> None:
    assert TABLE.texts()[0][1:] == ["16x128", "1.23", "1000.0", "+0.00", "passed"]
    assert TABLE.texts()[1] == ["[red]B", "1x8", "-", "2.00", "+0.50", "it passed"]
    lines = [line.split() for line in printed(100).splitlines()]
    assert lines[0] == ["A", "title"]
    assert ["[red]B", "1x8", "-", "2.00", "+0.50", "it", "passed"] in lines
    assert printed(100).splitlines()[-2].strip() == "ms: a legend."
    text = "\n".join(markdown_section(TABLE))
    assert text.startswith("## A title\n\n| name | batch x sequence | median ms | mean ms | vs FP32 | result |\n")
    assert "| --- | ---: | ---: | ---: | ---: | --- |" in text
    assert r"| A &lt;b&gt; model \| of many words | 16x128 | 1.23 | 1000.0 | +0.00 | passed |" in text
    assert text.endswith("\n\nms: a legend.\n")
    html = page()
    assert '<th class="right">median ms</th>' in html
    assert '<td class="left wraps plain">A &lt;b&gt; model | of many words</td>' in html
    assert '<td class="right plain">1.23</td>' in html
    assert '<p class="faint">ms: a legend.</p>' in html


def test_a_cell_without_a_value_says_why_and_a_judgment_has_its_color() -> None:
    assert '<td class="right plain" title="not timed">-</td>' in page()
    assert page().count("title=") == 1
    assert '<td class="left good">passed</td>' in page()
    assert '<td class="left plain">it passed</td>' in page()
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="standard")
    print_table(console, TABLE)
    assert "\x1b[32mpassed" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_narrow_terminal_loses_columns_before_words_wrap_and_never_cuts_a_figure() -> None:
    short = Table(COLUMNS, (("model", *ROWS[0][1:]), *ROWS[1:]), title="A title")
    whole = max(map(len, printed(200, short).splitlines()))
    assert "1000.0" in printed(whole, short)
    assert "not shown" not in printed(whole, short)
    assert "1000.0" not in printed(whole - len(COLUMNS), short)  # less than the space between columns can give
    assert "not shown at this width: mean ms\n" in printed(whole - len(COLUMNS), short)
    for width in range(44, 100):
        assert {"1.23", "+0.50", "16x128"} <= set(printed(width).split())
        assert max(map(len, printed(width).splitlines())) <= width
    assert "A <b> model | of many words" not in printed(44)  # wrapped
    assert printed(20, optional=True) == ""
    assert {"1.23", "+0.50"} <= set(printed(20).split())


def test_a_cell_may_be_markdown_already() -> None:
    table = Table((words("file"), words("note")), ((Markdown("`a|b`\n: **c**"), "`a|b` **c**"),))
    assert markdown_table(table)[2] == r"| `a\|b` : **c** | \`a\|b\` \*\*c\*\* |"


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="A title: a row does not have one cell for each of 6 columns"):
        Table(COLUMNS, (("a", "b"),), title="A title")


def test_numbers() -> None:
    assert [number(-0.001, spec) for spec in (".2f", "+.2f")] == ["0.00", "+0.00"]
    assert [ms(99.994), ms(100.0)] == ["99.99", "100.0"]
    assert [rate(value) for value in (9.876, 98.76, 987.6)] == ["9.88", "98.8", "988"]
    assert [error_percent(value) for value in (0, 1e-7, 0.0032, 0.031, 0.1349, 2)] == [
        "0",
        "<0.001%",
        "0.32%",
        "3.1%",
        "13%",
        "200%",
    ]
    assert [plural(count, "warning") for count in (0, 1, 2)] == ["0 warnings", "1 warning", "2 warnings"]
