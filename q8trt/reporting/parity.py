"""The result of a parity check: facts, sentences and tables.

Stages are compared by their logits, as absolute differences, and by their hidden states, as relative errors (norm of the
difference over norm of the earlier stage's). A layer has two errors. For `alone` it starts from the hidden states of the earlier
stage, for `so_far` from those of its own stage. Only `alone` shows the layer at fault, because rounding differences grow from
layer to layer when a value between two INT8 steps is rounded to the other step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from q8trt.quantization.precision import Precision
from q8trt.reporting.formats import error_percent, x100
from q8trt.reporting.head import NOT_RECORDED, Facts, device_of
from q8trt.reporting.table import Column, Phrase, Table, words
from q8trt.reporting.terminal import print_facts, print_lines, print_table, say
from q8trt.tasks.data import counted

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

SCHEMA = 1


@dataclass(frozen=True)
class Difference:
    """Absolute difference of logits: the `largest` and the `mean`, over all rows and outputs."""

    largest: float
    mean: float

    @classmethod
    def between(cls, first: np.ndarray, second: np.ndarray) -> Difference:
        """Return the difference of two arrays of logits."""
        apart = abs(second.astype("float64") - first)
        return cls(float(apart.max()), float(apart.mean()))


@dataclass(frozen=True)
class StageFigures:
    """The scores and logits of one stage at one batch size.

    Attributes:
        stage: its name, such as "ONNX Runtime".
        batch_size: rows a batch; a batch of one row is not padded, others are padded to a bucket of lengths.
        rows: rows scored: the first ones of the split.
        device: "cpu" or the name of the GPU.
        metrics: the task's metrics on these rows, as fractions.
        before: difference of the logits to those of the previous stage; None for the first stage.
        fp32: difference of the logits to those of torch FP32; None for torch FP32 itself.
    """

    stage: str
    batch_size: int
    rows: int
    metrics: dict[str, float]
    before: Difference | None
    fp32: Difference | None
    device: str = "cpu"


@dataclass(frozen=True)
class Pair:
    """Two stages at one batch size, or one stage at two batch sizes.

    Attributes:
        first: name of the earlier stage.
        second: name of the later stage.
        kind: the step between them: "training", "quantization", "export", "engine" or "padding".
        batch_size: rows a batch of the second.
        tolerance: largest relative error that counts as agreement; None without a judgment (training).
        logits: absolute difference of the logits.
        logits_error: relative error of the logits.
        alone: place ("embeddings", "layer.3", "head") -> relative error if it starts from the first stage's hidden states;
            empty for an engine, which returns only logits.
        so_far: the same if it starts from the hidden states of its own stage.
        parts_at: the first place whose error exceeds the tolerance, or "logits" for an engine; None if they agree or are not
            judged.
        module: the first module within that place whose error exceeds the tolerance; None if no module was searched for.
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
        """Place -> the error that is compared with the tolerance."""
        return self.alone or {"logits": self.logits_error}


@dataclass(frozen=True)
class EngineParity:
    """One engine folder, stage by stage.

    Attributes:
        name: such as "QAT INT8".
        folder: the engine folder, without machine paths.
        precision: of the engine.
        task: its name.
        main_metric: the metric that is shown.
        split: split of the data, such as "dev".
        data_source: source of the rows for readers.
        layer_rows: rows whose hidden states were compared.
        stages: in the order in which a model becomes an engine, each at every batch size.
        pairs: consecutive stages, then each stage at two batch sizes.
        not_run: stage -> the reason why it did not run here.
        model: its name.
        recipe: name of the quantization recipe; "" for a model without quantizers.
        wide_sites: sentences about sites with massive channels, with the recipe key that helps.
        questions: number of questions whose windows the rows are; None for rows that are not windows.
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
    model: str = ""
    recipe: str = ""
    wide_sites: list[str] = field(default_factory=list)
    questions: int | None = None

    def facts(self, hardware: Mapping[str, Any]) -> Facts:
        """Return the head of the result; `hardware` is that of a provenance."""
        rows = max((each.rows for each in self.stages), default=0)
        devices = dict.fromkeys(device_of(each.device, hardware) for each in self.stages)
        return [
            ("model", self.model),
            ("recipe", self.recipe or (NOT_RECORDED if self.precision.is_quantized else "none")),
            ("precision", self.precision.label),
            ("engine", self.folder),
            ("data", f"{self.task} {self.split}, {counted(rows, self.questions)}, {self.data_source}"),
            ("device", ", ".join(devices)),
        ]

    @property
    def agrees(self) -> bool:
        """True if every judged pair agrees."""
        return all(pair.parts_at is None for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; metrics and relative errors are fractions."""
        return {**asdict(self), "agrees": self.agrees, "verdict": [phrase.text for phrase in verdict(self)]}


def parity_dict(engines: Sequence[EngineParity], provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``parity.json``."""
    return {
        "schema": SCHEMA,
        "agrees": all(engine.agrees for engine in engines),
        "engines": [engine.to_dict() for engine in engines],
        "provenance": provenance,
    }


def verdict(engine: EngineParity) -> list[Phrase]:
    """Return a sentence for each pair of stages at each batch size at which they part, and one for each wide site.

    A pair that agrees at every batch size has one sentence, at the batch size with the largest error.
    """
    phrases: list[Phrase] = []
    for names in dict.fromkeys((pair.first, pair.second) for pair in engine.pairs):
        same = [pair for pair in engine.pairs if (pair.first, pair.second) == names]
        parted = [pair for pair in same if pair.parts_at is not None]
        phrases += map(_sentence, parted or [max(same, key=lambda pair: max(pair.judged_errors.values()))])
    return phrases + [Phrase(line, "warning") for line in engine.wide_sites]


def _sentence(pair: Pair) -> Phrase:
    if pair.kind == "padding":
        stages = f"{pair.first} -> batch {pair.batch_size}, padded"
        apart = f", logits {pair.logits.largest:.2g} apart at most, {pair.logits.mean:.2g} on average"
    else:
        stages, apart = f"{pair.first} -> {pair.second}, batch {pair.batch_size}", ""
    if pair.tolerance is None:
        error = error_percent(pair.logits_error)
        return Phrase(f"{stages}: not judged, {pair.kind} is between them (logits {error} apart)")
    tolerance = f"tolerance {error_percent(pair.tolerance)}"
    if pair.parts_at is not None:
        error = error_percent(pair.judged_errors[pair.parts_at])
        return Phrase(f"{stages}: PART at {pair.parts_at}, {error} apart, {tolerance}{_module(pair)}{apart}", "bad")
    place, largest = max(pair.judged_errors.items(), key=lambda item: item[1])
    if largest == pair.logits.largest == 0:
        return Phrase(f"{stages}: agree to the bit")
    states = "logits" if place == "logits" else f"layers at most (in {place})"
    return Phrase(f"{stages}: agree, {states} {error_percent(largest)} apart, {tolerance}{apart}")


def _module(pair: Pair) -> str:
    if pair.kind == "engine":
        return "; a plan returns only its logits, so no layer can be named"
    return f", first at the output of {pair.module}" if pair.module else ""


def stage_table(engine: EngineParity) -> Table:
    """Return a line per stage and batch size: score, and distance of the logits to other stages."""
    columns = (
        words(""), Column("batch", format="d"), Column("rows", format="d"),
        Column(engine.main_metric, "x100", format=x100), Column("to before", "max / mean", format=_apart),
        Column("to FP32", "max / mean", format=_apart),
    )  # fmt: skip
    rows = [
        (each.stage, each.batch_size, each.rows, each.metrics[engine.main_metric], each.before, each.fp32)
        for each in engine.stages
    ]
    legend = "absolute difference of logits to those of the stage before, and of torch FP32"
    return Table(columns, tuple(rows), legend)


def _apart(difference: Difference) -> str:
    return f"{difference.largest:.2g} / {difference.mean:.2g}"


def layer_table(engine: EngineParity) -> Table | None:
    """Return a line per place and a column per pair at the largest batch size; None if no stage shows its layers."""
    largest = max(each.batch_size for each in engine.stages)
    pairs = [pair for pair in engine.pairs if pair.alone and pair.kind != "padding" and pair.batch_size == largest]
    if not pairs:
        return None

    def cell(pair: Pair, place: str) -> str:
        mark = "*" if place == pair.parts_at else ""
        return f"{error_percent(pair.alone[place])}{mark} / {error_percent(pair.so_far[place])}"

    columns = (words(""), *(Column(pair.second, "alone / so far") for pair in pairs))
    rows = [(place, *(cell(pair, place) for pair in pairs)) for place in pairs[0].alone]
    legend = (
        f"relative error of hidden states to the stage before, {engine.layer_rows} rows at batch {largest}; alone: the "
        "layer starts from that stage's hidden states; *: the first layer above the tolerance"
    )
    return Table(columns, tuple(rows), legend)


def print_parity(engine: EngineParity, console: Console, hardware: Mapping[str, Any]) -> None:
    """Print head, stages, layers at the largest batch size, and the verdict; `hardware` is that of a provenance."""
    say(console, f"{engine.name}, stage by stage", "bold")
    print_facts(console, engine.facts(hardware))
    say(console)
    print_table(console, stage_table(engine))
    not_run = [Phrase(f"{stage} was not run: {reason}", "warning") for stage, reason in engine.not_run.items()]
    print_lines(console, not_run)
    if layers := layer_table(engine):
        print_table(console, layers)
    print_lines(console, verdict(engine))
