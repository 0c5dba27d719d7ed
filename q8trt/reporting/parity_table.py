"""The figures of a parity check as data, and on the terminal.

Two kinds of distance between stages: of logits, absolute, as they come out; and of hidden states, relative (norm of the
difference over norm of the earlier stage's). The latter twice: `alone` is what a layer adds when it is given the earlier
stage's hidden states, `so_far` what has come together up to it. Only `alone` says which layer is at fault, for rounding
differences grow from layer to layer: a value between two INT8 steps may fall either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from q8trt.quantization.precision import Precision

SCHEMA = 1


@dataclass(frozen=True)
class Difference:
    """Absolute difference of logits: the `largest` and the `mean` one, over all rows and labels."""

    largest: float
    mean: float


@dataclass(frozen=True)
class StageFigures:
    """What one stage computed at one batch size.

    Attributes:
        stage: its name, such as "ONNX Runtime".
        batch_size: rows a batch; a batch of one row is not padded, others are padded to a bucket of lengths.
        rows: rows scored: the first ones of the split.
        metrics: the task's metrics on these rows, as fractions.
        before: logits against those of the stage before it; None for the first stage.
        fp32: logits against those of torch FP32; None for torch FP32 itself.
    """

    stage: str
    batch_size: int
    rows: int
    metrics: dict[str, float]
    before: Difference | None
    fp32: Difference | None


@dataclass(frozen=True)
class Pair:
    """Two stages at one batch size, or one stage at two batch sizes.

    Attributes:
        first: the earlier one's name.
        second: the later one's.
        kind: what lies between them: "training", "quantization", "export", "engine" or "padding".
        batch_size: rows a batch of the second.
        tolerance: largest relative error taken for agreement; None where nothing is judged (training).
        logits: absolute difference of the logits.
        logits_error: relative error of the logits.
        alone: place ("embeddings", "layer.3", "head") -> relative error with the first's hidden states given to it; empty
            for an engine, which shows its logits alone.
        so_far: the same without that.
        parts_at: the first place whose error exceeds the tolerance, or "logits" for an engine; None where they agree.
        module: the first module within that place whose output does; None where it was not looked for.
    """

    first: str
    second: str
    kind: str
    batch_size: int
    tolerance: float | None
    logits: Difference
    logits_error: float
    alone: dict[str, float]
    so_far: dict[str, float]
    parts_at: str | None = None
    module: str | None = None

    @property
    def judged_errors(self) -> dict[str, float]:
        """Place -> what is held against the tolerance."""
        return self.alone or {"logits": self.logits_error}


@dataclass(frozen=True)
class EngineParity:
    """One engine folder, stage by stage.

    Attributes:
        name: such as "QAT INT8".
        folder: the engine folder, without the machine in it.
        precision: of the engine.
        task: its name, and `main_metric` the metric that is shown.
        split: of the data, from `data_source`.
        layer_rows: rows whose hidden states were compared.
        stages: in the order in which a model becomes an engine, each at every batch size.
        pairs: consecutive stages, then each stage at two batch sizes.
        not_run: stage -> why it did not run here.
    """

    name: str
    folder: str
    precision: Precision
    task: str
    main_metric: str
    split: str
    data_source: str
    layer_rows: int
    stages: list[StageFigures]
    pairs: list[Pair]
    not_run: dict[str, str]

    @property
    def agrees(self) -> bool:
        """Whether no judged pair parts."""
        return all(pair.parts_at is None for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; metrics and relative errors are fractions."""
        return {**asdict(self), "agrees": self.agrees, "verdict": verdict(self)}


def report_dict(engines: Sequence[EngineParity], provenance: dict[str, Any]) -> dict[str, Any]:
    """The content of ``parity.json``."""
    return {
        "schema": SCHEMA,
        "agrees": all(engine.agrees for engine in engines),
        "engines": [engine.to_dict() for engine in engines],
        "provenance": provenance,
    }


def percent(fraction: float) -> str:
    """Two significant digits, in words a reader can compare: ``"13%"``, ``"0.32%"``, ``"<0.001%"``; ``"0"`` for zero."""
    if fraction == 0:
        return "0"
    return "<0.001%" if fraction < 1e-5 else f"{100 * fraction:.2g}%" if fraction < 0.1 else f"{100 * fraction:.0f}%"


def _sentence(pair: Pair) -> str:
    if pair.kind == "padding":
        apart = f", logits {pair.logits.largest:.2g} apart at most, {pair.logits.mean:.2g} on average"
        names = f"{pair.first} -> {pair.second.rpartition(', ')[2]}, padded"
    else:
        apart, names = "", f"{pair.first} -> {pair.second}, batch {pair.batch_size}"
    if pair.tolerance is None:
        return f"{names}: not judged, {pair.kind} lies between them (logits {percent(pair.logits_error)} apart)"
    tolerance = f"tolerance {percent(pair.tolerance)}"
    if pair.parts_at is None:
        place, error = max(pair.judged_errors.items(), key=lambda item: item[1])
        if error == pair.logits.largest == 0:
            return f"{names}: agree to the bit"
        what = "logits" if place == "logits" else f"layers at most (in {place})"
        return f"{names}: agree, {what} {percent(error)} apart, {tolerance}{apart}"
    where = f", first at the output of {pair.module}" if pair.module else ""
    if pair.kind == "engine":
        where = "; a plan shows nothing but its logits, so no layer can be named"
    error = pair.judged_errors[pair.parts_at]
    return f"{names}: PART at {pair.parts_at}, {percent(error)} apart, {tolerance}{where}{apart}"


def verdict(engine: EngineParity) -> list[str]:
    """A sentence on each two stages: at every batch size at which they part, else at the one that is furthest apart."""
    lines: list[str] = []
    for names in dict.fromkeys((pair.first, pair.second) for pair in engine.pairs):
        same = [pair for pair in engine.pairs if (pair.first, pair.second) == names]
        parted = [pair for pair in same if pair.parts_at is not None]
        lines += map(_sentence, parted or [max(same, key=lambda pair: max(pair.judged_errors.values()))])
    return lines


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for number, header in enumerate(headers):
        width = max(len(line) for cell in (header, *(row[number] for row in rows)) for line in cell.split("\n"))
        table.add_column(Text(header), justify="right" if number else "left", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _apart(difference: Difference | None) -> str:
    return f"{difference.largest:.2g} / {difference.mean:.2g}" if difference else "-"


def _stage_table(engine: EngineParity) -> Table:
    headers = ["", "batch", "rows", f"{engine.main_metric}\nx100", "to before\nmax / mean", "to FP32\nmax / mean"]
    rows = []
    for each in engine.stages:
        score = f"{100 * each.metrics[engine.main_metric]:.2f}"
        cells = [str(each.batch_size), str(each.rows), score, _apart(each.before), _apart(each.fp32)]
        rows.append([each.stage, *cells])
    return _table(headers, rows)


def _layer_table(pairs: Sequence[Pair]) -> Table:
    """A line per place, a column per pair: what the layer adds alone / what has come together."""

    def cell(pair: Pair, place: str) -> str:
        mark = "*" if place == pair.parts_at else ""
        return f"{percent(pair.alone[place])}{mark} / {percent(pair.so_far[place])}"

    headers = ["", *("\n".join([*pair.second.replace(",", "").split(" ", 1), "alone / so far"]) for pair in pairs)]
    return _table(headers, [[place, *(cell(pair, place) for pair in pairs)] for place in pairs[0].alone])


def print_parity(engine: EngineParity, console: Console) -> None:
    """Print stages, layers at the largest batch size, and the verdict."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    say(f"{engine.name}, {engine.folder}: {engine.task} {engine.split} from {engine.data_source}", "bold")
    console.print()
    console.print(_stage_table(engine))
    say("absolute difference of logits to those of the stage before, and of torch FP32", "dim")
    for stage, reason in engine.not_run.items():
        say(f"{stage} was not run: {reason}", "yellow")
    console.print()
    largest = max(each.batch_size for each in engine.stages)
    shown = [pair for pair in engine.pairs if pair.alone and pair.kind != "padding" and pair.batch_size == largest]
    if shown:
        console.print(_layer_table(shown))
        say(
            f"relative error of hidden states to the stage before, {engine.layer_rows} rows at batch {largest}; alone: where "
            "the layer is given that stage's hidden states to start from; *: where they part",
            "dim",
        )
    for line in verdict(engine):
        say(line, "red" if ": PART at " in line else "")
