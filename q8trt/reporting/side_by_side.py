"""Two benchmark reports side by side: two machines, two backends or two versions.

A ratio between different machines or backends compares more than the rows' names say, so each such row carries what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from q8trt.errors import DataError
from q8trt.files import read_json
from q8trt.reporting.report import SCHEMA

Json = Mapping[str, Any]
#: What is read of a row.
_ROW = ("name", "precision", "backend", "device", "label", "latencies", "score_x100")


def read_report(path: str | Path) -> dict[str, Any]:
    """A report that `benchmark.py` wrote.

    Raises:
        DataError: the file is missing, no JSON, no benchmark report, or one of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a benchmark.json that benchmark.py wrote")
    try:
        data = read_json(path)
    except ValueError as error:
        raise DataError(
            f"{path} is no JSON file ({error}); expected a benchmark.json that benchmark.py wrote"
        ) from error
    if (
        not isinstance(data, dict)
        or not {"schema", "rows", "provenance"} <= set(data)
        or not isinstance(data["rows"], list)
    ):
        raise DataError(f"{path} is no benchmark report; expected a benchmark.json that benchmark.py wrote")
    if data["schema"] != SCHEMA:
        raise DataError(f"{path} has schema {data['schema']}, this q8trt reads {SCHEMA}; run benchmark.py again")
    missing = [key for key in ("title", "main_metric") if key not in data]
    missing += [key for row in data["rows"] for key in _ROW if not isinstance(row, dict) or key not in row]
    if missing:
        raise DataError(f"{path} is damaged: {missing[0]} is missing; run benchmark.py again")
    return data


def _machine(report: Json, row: Json) -> str:
    """What the row ran on: the GPU, or the CPU's own name, which the word "cpu" hides."""
    hardware = report["provenance"].get("hardware", {})
    if row["device"] != "cpu":
        return str(row["device"])
    return f"{hardware.get('cpu', 'CPU')}, {hardware.get('cores', '?')} cores"


def _differences(a: tuple[Json, Json], b: tuple[Json, Json]) -> list[str]:
    """What differs between two (report, row) beside the figures; versions are what one compares, so they are not among it."""
    pairs = {
        "backend": [row["backend"] for _, row in (a, b)],
        "device": [_machine(*each) for each in (a, b)],
    }
    return [f"{name}: {first} | {second}" for name, (first, second) in pairs.items() if first != second]


def _pairs(a: Sequence[Json], b: Sequence[Json]) -> list[tuple[Json, Json]]:
    """Rows of one name and precision, in the order of `a`: those of one backend and device first, then what is left."""
    partners: dict[int, int] = {}
    for keys in (("name", "precision", "backend", "device"), ("name", "precision")):
        for index, row in enumerate(a):
            free = (other for other in range(len(b)) if other not in partners.values())
            alike = (other for other in free if all(row[key] == b[other][key] for key in keys))
            if index not in partners and (found := next(alike, None)) is not None:
                partners[index] = found
    return [(a[index], b[partners[index]]) for index in sorted(partners)]


def _data(report: Json) -> tuple[Any, ...]:
    return tuple(report.get(key) for key in ("task", "split", "data_fingerprint", "rows_evaluated"))


def side_by_side(a: Json, b: Json) -> dict[str, Any]:
    """Match the rows of two reports by name and precision, and their times by shape.

    Returns:
        JSON-ready: "a" and "b" (title, date, commit, versions, machine), "rows": for each matched row and shape both medians,
        "b_over_a_speed_ratio" (above 1: B is faster) and "across", what differs beside the figures: where it is not empty, the
        ratio compares machines or backends and not models; "scores" likewise, with the difference only on the same data;
        "only_in_a" and "only_in_b": names of the rows without a partner.
    """
    pairs = _pairs(a["rows"], b["rows"])
    matched = [id(row) for pair in pairs for row in pair]
    return {
        "a": _about(a),
        "b": _about(b),
        "rows": [time for pair in pairs for time in _times(a, b, *pair)],
        "scores": [_score(a, b, *pair) for pair in pairs],
        "only_in_a": [row["name"] for row in a["rows"] if id(row) not in matched],
        "only_in_b": [row["name"] for row in b["rows"] if id(row) not in matched],
    }


def _times(a: Json, b: Json, first: Json, second: Json) -> list[dict[str, Any]]:
    """One entry for each shape of `first`."""
    across = _differences((a, first), (b, second))
    others = {_shape(latency): latency for latency in second["latencies"]}
    rows = []
    for latency in first["latencies"]:
        other = others.get(_shape(latency))
        clocks = []
        if other and other["clock"] != latency["clock"]:
            clocks = [f"clock: {latency['clock']} | {other['clock']}"]
        rows.append(
            {
                "name": first["name"],
                "precision": first["precision"],
                "shape": _shape(latency),
                "a_place": _place(first),
                "b_place": _place(second),
                "a_median_ms": latency["median_ms"],
                "b_median_ms": other["median_ms"] if other else None,
                "b_over_a_speed_ratio": latency["median_ms"] / other["median_ms"] if other else None,
                "across": across + clocks,
            }
        )
    return rows


def _place(row: Json) -> str:
    """The label without the precision."""
    return str(row["label"]).removesuffix(f", {row['precision']}")


def _score(a: Json, b: Json, first: Json, second: Json) -> dict[str, Any]:
    scores = first["score_x100"], second["score_x100"]
    same = _data(a) == _data(b) and None not in scores
    return {
        "name": first["name"],
        "metric": a["main_metric"],
        "a_score_x100": scores[0],
        "b_score_x100": scores[1],
        "b_minus_a_points": scores[1] - scores[0] if same else None,
        "across": [] if _data(a) == _data(b) else [f"data: {a['title']} | {b['title']}"],
    }


def _shape(latency: Json) -> str:
    return f"{latency['batch']}x{latency['sequence']}"


def _about(report: Json) -> dict[str, Any]:
    origin = report["provenance"]
    kept = {key: origin.get(key) for key in ("date_utc", "git_commit", "versions", "hardware")}
    return {"title": report["title"], **kept}


def about_line(letter: str, about: Json) -> str:
    """Report `letter` in a line: title, machine, date, commit, libraries."""
    hardware, versions = about["hardware"] or {}, about["versions"] or {}
    machine = ", ".join(hardware.get("gpus") or [f"{hardware.get('cpu')}, {hardware.get('cores')} cores"])
    commit = f", commit {about['git_commit'][:10]}" if about["git_commit"] else ""
    libraries = ", ".join(
        f"{name} {versions[name]}" for name in ("onnxruntime", "tensorrt", "tensorrt-rtx") if name in versions
    )
    return f"{letter}: {about['title']}; {machine}; {about['date_utc']}{commit}; {libraries}"


def across_words(row: Json) -> str:
    """The names of what differs; "like for like" where nothing does."""
    if row["b_median_ms"] is None:
        return "not timed in B"
    return " and ".join(each.partition(":")[0] for each in row["across"]) or "like for like"


def place_words(row: Json) -> str:
    """Where a matched row ran, once where that is the same."""
    return str(row["a_place"]) if row["a_place"] == row["b_place"] else f"A: {row['a_place']}; B: {row['b_place']}"


def score_rows(both: Json) -> list[list[str]]:
    """Name, both scores, their difference and what is to be said of the data; [] where neither report has scores."""
    if all(row["a_score_x100"] is None and row["b_score_x100"] is None for row in both["scores"]):
        return []
    return [
        [
            row["name"], _text(row["a_score_x100"], ".2f"), _text(row["b_score_x100"], ".2f"),
            _text(row["b_minus_a_points"], "+.2f"), "; ".join(row["across"]) or "the same rows",
        ]
        for row in both["scores"]
    ]  # fmt: skip


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print_table(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> None:
    """The first and the last `words` columns hold words and may wrap."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for index, header in enumerate(headers):
        wordy = index < words or index == len(headers) - 1
        table.add_column(header, justify="left" if wordy else "right", no_wrap=not wordy, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    console.print()


def print_side_by_side(both: Json, console: Console) -> None:
    """Print what `side_by_side` made."""
    for letter in "ab":
        console.print(Text(about_line(letter.upper(), both[letter])))
    console.print()
    rows = [
        [
            row["name"],
            place_words(row),
            row["shape"],
            _text(row["a_median_ms"], ".2f"),
            _text(row["b_median_ms"], ".2f"),
            "-" if row["b_median_ms"] is None else f"{row['b_over_a_speed_ratio']:.2f}x",
            across_words(row),
        ]
        for row in both["rows"]
    ]
    headers = ["", "runs on", "batch x\nsequence", "A\nmedian ms", "B\nmedian ms", "speed\nB over A", "ratio\nacross"]
    _print_table(console, headers, rows, 2)
    if scores := score_rows(both):
        metric = both["scores"][0]["metric"]
        _print_table(console, ["", f"A\n{metric} x100", f"B\n{metric} x100", "B - A\npoints", "data"], scores, 1)
    for letter in "ab":
        if names := both[f"only_in_{letter}"]:
            console.print(Text(f"only in {letter.upper()}: {', '.join(names)}"))
