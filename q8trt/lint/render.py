"""A lint report on the terminal: blocks, equal layers in one line; findings by rule; one line of verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from q8trt.lint.report import HEAD, Block, Finding, LintReport, Part, Place
from q8trt.lint.rules import LEVELS, Level

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_SHOWN = 3  # of the different things that a rule found
_ALL_NAMED = ("fp32-leftover",)  # rules that name every node, not the first alone


def print_report(report: LintReport, console: Console) -> None:
    """Print the whole report."""
    judged = f"; judged up to {'x'.join(map(str, report.max_shapes))}" if report.max_shapes else ""
    _say(console, report.path, "bold")
    _say(console, f"opset {report.opset}, written by {report.producer}{judged}", "dim")
    console.print()
    console.print(block_table(report.blocks))
    console.print()
    if report.findings:
        console.print(finding_table(report.findings))
        console.print()
    _say(console, verdict(report), "bold")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=False)


def verdict(report: LintReport) -> str:
    """One line: what runs in INT8, and how many findings of each level."""
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
    counts = ", ".join(_plural(report.count(level), level) for level in LEVELS)
    refused = "TensorRT will refuse this file or misread it. " if report.count("error") else ""
    return f"{refused}INT8: {', '.join(parts) or 'nothing to count'}{fusable}; {counts}."


def _plural(count: int, level: Level) -> str:
    name = "note" if level == "info" else level
    return f"{count} {name}{'' if count == 1 else 's'}"


def block_table(blocks: Sequence[Block]) -> Table:
    """One line per block; layers that look alike share one."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for number, header in enumerate(("block", "GEMM\nINT8", "BMM\nINT8", "residual\nAdd", "other\nops", "notes")):
        table.add_column(Text(header), overflow="fold", no_wrap=number in (1, 2, 3, 4))
    rows: dict[tuple[str, tuple[str, ...]], list[Block]] = {}
    for block in blocks:
        rows.setdefault((block.place.kind, _cells(block)), []).append(block)
    for (_, cells), alike in rows.items():
        table.add_row(*(Text(cell) for cell in (names_of([block.place for block in alike]), *cells)))
    return table


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
    tables = Counter(item.what for item in block.items if item.part is Part.TABLE)
    notes = [f"{count} {what}{'s' if count > 1 and what.endswith('table') else ''}" for what, count in tables.items()]
    notes += dict.fromkeys(item.what for item in block.items if item.part is Part.ATTENTION)
    notes += dict.fromkeys(f"{item.label} {item.note}" for item in block.items if item.note)
    return notes


def names_of(places: Sequence[Place]) -> str:
    """Return "layer 0-1 attention" for layers 0 and 1; the names of other places joined by commas, the head last."""
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


def finding_table(findings: Sequence[Finding]) -> Table:
    """Findings by rule and level, the worst first: how many, what, where, why it matters, how to fix it."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.rule), []).append(finding)
    for number, ((level, rule), group) in enumerate(groups.items()):
        if number:
            table.add_row("", "")
        count = f" x{len(group)}" if len(group) > 1 else ""
        table.add_row(Text(level, style=_STYLES[level]), Text(f"{rule}{count}", style="bold"))
        for line in _lines(group):
            table.add_row("", line)
    return table


def _lines(group: Sequence[Finding]) -> list[Text]:
    whats = Counter(finding.what for finding in group)
    counted = len(whats) > 1
    lines = [Text(f"{what} (x{count})" if counted and count > 1 else what) for what, count in whats.most_common(_SHOWN)]
    if len(whats) > _SHOWN:
        lines.append(Text(f"and {len(whats) - _SHOWN} more of the kind"))
    if places := list(dict.fromkeys(finding.place for finding in group if finding.place)):
        nodes = list(dict.fromkeys(finding.node for finding in group if finding.place))
        every = len(nodes) == 1 or group[0].rule in _ALL_NAMED
        named = ", ".join(nodes) if every else f"first: {nodes[0]}"
        lines.append(Text(f"in {names_of(places)}; {named}", style="dim"))
    lines.append(Text.assemble(("why: ", "italic"), group[0].why))
    lines.append(Text.assemble(("fix: ", "italic"), group[0].fix))
    return lines
