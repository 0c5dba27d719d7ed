"""A lint report on the terminal: a table of blocks, in which equal layers share a line, the findings by rule, and a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from q8trt.console.counts import plural
from q8trt.lint import LEVELS, Block, Finding, Level, LintReport, Part, Place
from q8trt.lint.report import HEAD
from q8trt.reporting.table import Column, Table, words
from q8trt.reporting.terminal import print_table, say

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_SHOWN = 3  # different facts of a rule that are printed
_ALL_NAMED = ("fp32-leftover",)  # rules whose findings name every node, not only the first


def print_report(report: LintReport, console: Console) -> None:
    """Print the whole report."""
    judged = f"; judged up to {'x'.join(map(str, report.max_shapes))}" if report.max_shapes else ""
    say(console, report.path, "bold")
    say(console, f"opset {report.opset}, written by {report.producer}{judged}", "dim")
    console.print()
    print_table(console, block_table(report.blocks))
    if report.findings:
        _print_findings(console, report.findings)
    say(console, verdict(report), "bold")


def verdict(report: LintReport) -> str:
    """Return one line: the parts that run in INT8, and the number of findings of each level."""
    cast = report.forecast
    parts = [
        f"{done} of {total} {name}"
        for done, total, name in (
            (cast.int8_gemms, cast.gemms, "GEMMs"),
            (cast.int8_bmms, cast.bmms, "BMMs"),
            (cast.int8_residual_adds, cast.residual_adds, "residual Adds"),
            (cast.int8_embeddings, cast.embeddings, "tables"),
        )
        if total
    ]
    fusable = f"; {cast.fusable_attentions} of {cast.layers} attentions fusable" if cast.layers else ""
    counts = ", ".join(_count(report.count(level), level) for level in LEVELS)
    refused = "TensorRT will refuse this file or misread it. " if report.count("error") else ""
    return f"{refused}INT8: {', '.join(parts) or 'nothing to count'}{fusable}; {counts}."


def _count(count: int, level: Level) -> str:
    return plural(count, "note" if level == "info" else level)


def block_table(blocks: Sequence[Block]) -> Table:
    """Return a row for each block; layers that look alike share one."""
    counts = [Column(heading, unit, align="left") for heading, unit in (("GEMM", "INT8"), ("BMM", "INT8"))]
    others = [Column(heading, unit, align="left") for heading, unit in (("residual", "Add"), ("other", "ops"))]
    rows: dict[tuple[str, tuple[str, ...]], list[Place]] = {}
    for block in blocks:
        rows.setdefault((block.place.kind, _cells(block)), []).append(block.place)
    return Table(
        columns=(words("block", wraps=True), *counts, *others, words("notes", wraps=True)),
        rows=tuple((names_of(places), *cells) for (_, cells), places in rows.items()),
    )


def _cells(block: Block) -> tuple[str, ...]:
    int8 = {part: [item.int8 for item in block.items if item.part is part] for part in Part}
    adds = int8[Part.RESIDUAL]
    return (
        _share(int8[Part.GEMM]),
        _share(int8[Part.BMM]),
        "INT8" if adds and all(adds) else "not INT8" if adds else "",
        "/".join(dict.fromkeys(item.dtype for item in block.items if item.dtype)),
        "; ".join(_notes(block)),
    )


def _share(int8: Sequence[bool]) -> str:
    return f"{sum(int8)}/{len(int8)}" if int8 else ""


def _notes(block: Block) -> list[str]:
    tables = Counter((item.text, item.plural) for item in block.items if item.part is Part.TABLE)
    notes = [f"{count} {text if count == 1 else several}" for (text, several), count in tables.items()]
    notes += dict.fromkeys(item.text for item in block.items if item.part is Part.ATTENTION)
    notes += dict.fromkeys(f"{item.label} {item.note}" for item in block.items if item.note)
    return notes


def names_of(places: Sequence[Place]) -> str:
    """Return the names of places, joined by commas: "layer 0-1 attention" for layers 0 and 1, the head last."""
    layers: dict[str, list[int]] = {}
    for place in places:
        if place.layer is not None:
            layers.setdefault(place.kind, []).append(place.layer)
    kinds_of: dict[str, list[str]] = {}
    for kind, numbers in layers.items():
        kinds_of.setdefault(_ranges(sorted(set(numbers))), []).append(kind)
    plain = list(dict.fromkeys(place.kind for place in places if place.layer is None))
    names = [f"layer {span} {' and '.join(kinds)}" for span, kinds in kinds_of.items()]
    return ", ".join([*(kind for kind in plain if kind != HEAD), *names, *([HEAD] if HEAD in plain else [])])


def _ranges(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print findings by rule and level, the worst first: their number, facts and places, why they matter and the fix."""
    from rich.padding import Padding
    from rich.text import Text

    groups: dict[tuple[Level, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.rule), []).append(finding)
    indent = max(len(level) for level, _ in groups) + 1
    for (level, rule), group in groups.items():
        count = f" x{len(group)}" if len(group) > 1 else ""
        console.print(Text.assemble((level.ljust(indent), _STYLES[level]), (f"{rule}{count}", "bold")))
        first = group[0]
        lines = [*map(Text, _facts(group)), *(Text(line, "dim") for line in _places(group))]
        lines += [Text.assemble(("why: ", "italic"), first.why), Text.assemble(("fix: ", "italic"), first.fix)]
        for line in lines:
            console.print(Padding(line, (0, 0, 0, indent)))
        console.print()


def _facts(group: Sequence[Finding]) -> list[str]:
    counts = Counter(finding.text for finding in group)
    lines = [
        f"{text} (x{count})" if len(counts) > 1 and count > 1 else text for text, count in counts.most_common(_SHOWN)
    ]
    return [*lines, f"and {len(counts) - _SHOWN} more of the kind"] if len(counts) > _SHOWN else lines


def _places(group: Sequence[Finding]) -> list[str]:
    placed = [finding for finding in group if finding.place is not None]
    if not placed:
        return []
    nodes = list(dict.fromkeys(finding.node for finding in placed))
    every = len(nodes) == 1 or group[0].rule in _ALL_NAMED
    named = ", ".join(nodes) if every else f"first: {nodes[0]}"
    places = list(dict.fromkeys(finding.place for finding in placed if finding.place is not None))
    return [f"in {names_of(places)}; {named}"]
