"""Two benchmark reports side by side as one self-contained page, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.reporting.cells import ms
from q8trt.reporting.html import figure, page, provenance_section, section, table
from q8trt.reporting.side_by_side import about_line, across_words, place_words, score_rows
from q8trt.reporting.svg import bars

Json = Mapping[str, Any]
TITLE = "Two benchmarks side by side"
_LEGEND = (
    "speed: A's median time over B's; above 1, B is faster. Where the ratio is across a backend or a device, it "
    "compares those and not the models."
)


def html(both: Json) -> str:
    """The page of what `side_by_side` made, a whole HTML document."""
    abouts = "".join(f"<li class='plain'>{escape(about_line(letter.upper(), both[letter]))}</li>" for letter in "ab")
    body = [f"<header><h1>{TITLE}</h1>\n<ul class='verdict'>{abouts}</ul></header>"]
    if figures := _figures(both["rows"]):
        body.append(section("Median latency", f"<div class='plots'>{''.join(figures)}</div>"))
    times = [
        [
            row["name"],
            row["shape"],
            ms(row["a_median_ms"]),
            ms(row["b_median_ms"]),
            "-" if row["b_over_a_speed_ratio"] is None else f"{row['b_over_a_speed_ratio']:.2f}x",
            across_words(row),
            place_words(row),
        ]
        for row in both["rows"]
    ]
    headers = ["", "batch x sequence", "A median ms", "B median ms", "speed, B over A", "ratio across", "run on"]
    body.append(section("Times", table(headers, times, 1, 2) + f"<p class='faint'>{escape(_LEGEND)}</p>"))
    if scores := score_rows(both):
        metric = both["scores"][0]["metric"]
        named = ["", f"A {metric} x100", f"B {metric} x100", "B - A points", "data"]
        body.append(section("Scores", table(named, scores, 1, 1)))
    lonely = [
        f"only in {letter.upper()}: {', '.join(both[f'only_in_{letter}'])}"
        for letter in "ab"
        if both[f"only_in_{letter}"]
    ]
    if lonely:
        body.append(section("Without a partner", "".join(f"<p>{escape(line)}</p>" for line in lonely)))
    body.append(provenance_section({"A": both["a"], "B": both["b"]}))
    return page(TITLE, body)


def _figures(rows: Sequence[Json]) -> list[str]:
    """Both medians at each shape, a figure for each row, its place and what the ratio is across in the caption."""
    figures = []
    for name in dict.fromkeys((row["name"], row["a_place"], row["b_place"]) for row in rows):
        timed = [
            row
            for row in rows
            if (row["name"], row["a_place"], row["b_place"]) == name and row["b_median_ms"] is not None
        ]
        items: list[tuple[str, float, int, str]] = []
        for row in timed:
            items.append((f"{row['shape']}, A", row["a_median_ms"], 0, f"{ms(row['a_median_ms'])} ms"))
            speed = f"{ms(row['b_median_ms'])} ms, {row['b_over_a_speed_ratio']:.2f}x"
            items.append((f"{row['shape']}, B", row["b_median_ms"], 1, speed))
        if items:
            where = f"{place_words(timed[0])}; {across_words(timed[0])}"
            title = f"{name[0]}, median latency"
            figures.append(figure(title, where, bars(items, f"{title}, {where}", "ms"), [(0, "A"), (1, "B")]))
    return figures


def write_side_by_side(folder: str | Path, both: Json, name: str = "compare") -> tuple[Path, Path]:
    """Write ``<name>.html`` and ``.json`` into `folder`, each whole or not at all; returns the two paths.

    Raises:
        OSError: the folder cannot be written.
    """
    paths = Path(folder) / f"{name}.html", Path(folder) / f"{name}.json"
    files.write_text(paths[0], html(both))
    files.write_json(paths[1], both)
    return paths
