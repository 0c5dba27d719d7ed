"""A lint report on the terminal: blocks, equal layers in one line; findings by rule; one line of verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from q8trt.lint.blocks import HEAD
from q8trt.lint.report import Block, Finding, LintReport

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_FULL = "INT8 x INT8"
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
    counts = ", ".join(_plural(report.count(level), level) for level in ("error", "warning", "info"))
    refused = "TensorRT will refuse this file or misread it. " if report.count("error") else ""
    return f"{refused}INT8: {', '.join(parts) or 'nothing to count'}{fusable}; {counts}."


def _plural(count: int, level: str) -> str:
    name = "note" if level == "info" else level
    return f"{count} {name}{'' if count == 1 else 's'}"


def block_table(blocks: Sequence[Block]) -> Table:
    """One line per block; layers that look alike share one."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for number, header in enumerate(("block", "GEMM\nINT8", "BMM\nINT8", "residual\nAdd", "other\nops", "notes")):
        table.add_column(Text(header), overflow="fold", no_wrap=number in (1, 2, 3, 4))
    rows: dict[tuple[str, tuple[str, ...]], list[Block]] = {}
    for block in blocks:
        rows.setdefault((block.kind, _cells(block)), []).append(block)
    for (_, cells), alike in rows.items():
        table.add_row(*(Text(cell) for cell in (names_of([block.name for block in alike]), *cells)))
    return table


def _cells(block: Block) -> tuple[str, ...]:
    gemms = [item.what for item in block.items if "GEMM" in item.label]
    bmms = [item.what for item in block.items if "BMM" in item.label]
    adds = [item.what for item in block.items if item.label == "residual Add"]
    rest = [item.what.split(",")[0].split(" ")[0] for item in block.items if _is_rest(item.label)]
    return (
        _share(gemms, _FULL),
        _share(bmms, _FULL),
        "INT8" if adds and set(adds) == {"INT8 + INT8"} else "not INT8" if adds else "",
        "/".join(dict.fromkeys(rest)),
        "; ".join(_notes(block)),
    )


def _is_rest(label: str) -> bool:
    return not any(word in label for word in ("GEMM", "BMM", "residual", "attention", "table", "Transpose"))


def _share(found: Sequence[str], wanted: str) -> str:
    return f"{sum(what == wanted for what in found)}/{len(found)}" if found else ""


def _notes(block: Block) -> list[str]:
    tables = Counter(item.what for item in block.items if item.label.startswith("table"))
    notes = [f"{count} {what}{'s' if count > 1 and what.endswith('table') else ''}" for what, count in tables.items()]
    notes += dict.fromkeys(item.what for item in block.items if item.label == "attention")
    notes += dict.fromkeys(
        f"{item.label} {item.what.split(' ', 1)[1].lstrip(', ')}"
        for item in block.items
        if item.label in ("LayerNorm", "GELU") and " " in item.what
    )
    return [note.replace("  ", " ") for note in notes]


def names_of(names: Sequence[str]) -> str:
    """["layer 0 attention", "layer 1 attention"] -> "layer 0-1 attention"; other names joined by commas."""
    plain = list(dict.fromkeys(name for name in names if not name.startswith("layer ")))
    kinds: dict[str, list[int]] = {}
    for name in names:
        if name.startswith("layer "):
            _, number, kind = name.split(" ", 2)
            kinds.setdefault(kind, []).append(int(number))
    both: dict[str, list[str]] = {}
    for kind, numbers in kinds.items():
        both.setdefault(_ranges(sorted(set(numbers))), []).append(kind)
    layers = [f"layer {span} {' and '.join(kind)}" for span, kind in both.items()]
    return ", ".join([*(name for name in plain if name != HEAD), *layers, *(name for name in plain if name == HEAD)])


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
    if blocks := list(dict.fromkeys(finding.block for finding in group if finding.block)):
        nodes = list(dict.fromkeys(finding.node for finding in group if finding.block))
        every = len(nodes) == 1 or group[0].rule in _ALL_NAMED
        named = ", ".join(nodes) if every else f"first: {nodes[0]}"
        lines.append(Text(f"in {names_of(blocks)}; {named}", style="dim"))
    lines.append(Text.assemble(("why: ", "italic"), group[0].why))
    lines.append(Text.assemble(("fix: ", "italic"), group[0].fix))
    return lines
