"""The head of a report: the model, data, device and backend of its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from q8trt.engine.manifest import SAMPLE_LABEL
from q8trt.quantization.precision import Precision
from q8trt.reporting.table import Table, words
from q8trt.runtime.registry import label_of
from q8trt.tasks.heads import HeadKind

if TYPE_CHECKING:
    from q8trt.reporting.measurements import Row
    from q8trt.reporting.stored import StoredRow

#: Names of facts and their texts.
Facts = list[tuple[str, str]]
#: Text of a fact that a report of an earlier version lacks.
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Head:
    """The facts that a reader needs before the figures. Each tuple has a name once, in the order of the rows.

    Attributes:
        models: names of the models.
        recipes: names of the quantization recipes; () if no row is quantized.
        precisions: values of `Precision`.
        runs: the runs, or the engine folders of engines outside a run.
        data: task, split, rows and source.
        devices: names of the GPUs, or of the CPU with its cores.
        backends: labels of the runtimes, with their versions.
        shapes: the timed shapes, batch x tokens.
        date: day and minute, UTC; "" if unknown.
    """

    models: tuple[str, ...]
    recipes: tuple[str, ...]
    precisions: tuple[str, ...]
    runs: tuple[str, ...]
    data: str
    devices: tuple[str, ...]
    backends: tuple[str, ...]
    shapes: tuple[str, ...] = ()
    date: str = ""

    def facts(self) -> Facts:
        """Return each fact as its name and its text."""
        is_quantized = any(each.is_quantized for each in Precision if each.value in self.precisions)
        facts: Facts = [
            ("model", _text(self.models)),
            ("recipe", _text(self.recipes, NOT_RECORDED if is_quantized else "none")),
            ("precision", _text([each.upper() for each in self.precisions])),
            *([("run", _text(self.runs))] if self.runs else []),
            ("data", self.data or NOT_RECORDED),
            ("device", _text(self.devices)),
            ("backend", _text(self.backends)),
        ]
        if self.shapes:
            facts.append(("shapes", f"{_text(self.shapes)} (batch x tokens)"))
        return [*facts, ("date", self.date)] if self.date else facts


def head_of(rows: Sequence[Row | StoredRow], data: str, provenance: Mapping[str, Any]) -> Head:
    """Return the head of a report with `rows`; `provenance` has the versions and the hardware."""
    versions, hardware = provenance.get("versions") or {}, provenance.get("hardware") or {}
    return Head(
        models=_once(row.model for row in rows),
        recipes=_once(row.recipe for row in rows),
        precisions=_once(str(row.precision) for row in rows),
        runs=_once(row.run for row in rows),
        data=data,
        devices=_once(device_of(row.device, hardware) for row in rows),
        backends=_once(_backend(row.backend, versions) for row in rows),
        shapes=_once(each.shape for row in rows for each in row.latencies),
        date=_minute(provenance.get("date_utc") or ""),
    )


def _minute(date_utc: str) -> str:
    """Return ``"2026-11-28 03:19 UTC"``; text that is not ISO 8601 is returned as it is."""
    try:
        return datetime.fromisoformat(date_utc).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return date_utc


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))


def _text(names: Sequence[str], missing: str = NOT_RECORDED) -> str:
    return ", ".join(names) or missing


def device_of(device: str, hardware: Mapping[str, Any]) -> str:
    """Return the name of a GPU as it is, and for "cpu" the name of the CPU with its cores."""
    if device != "cpu":
        return device
    return f"{hardware.get('cpu') or 'CPU'}, {hardware.get('cores') or '?'} cores"


def _backend(name: str, versions: Mapping[str, Any]) -> str:
    version = versions.get(name) or versions.get(name.replace("_", "-"))
    return f"{label_of(name)} {version}" if version else label_of(name)


def heading(models: Sequence[str], task: str, is_sample: bool) -> str:
    """Return ``"minilm on STS-B"`` or, without a task, the head: ``"my-model, sequence classification"``.

    For the built-in sample, the text also says that it is not GLUE.
    """
    is_head = task in {kind.value for kind in HeadKind}
    subject = f", {task.replace('-', ' ')}" if is_head else f" on {task}"
    return f"{', '.join(models)}{subject}{f', {SAMPLE_LABEL}' if is_sample else ''}"


def facts_table(reports: Mapping[str, Facts]) -> Table:
    """Return a line for each fact and a column for each report, headed by its name."""
    columns = (words(""), *(replace(words(name, wraps=True), missing="none") for name in reports))
    texts = [dict(facts) for facts in reports.values()]
    names = dict.fromkeys(name for facts in texts for name in facts)
    return Table(columns, tuple((name, *(facts.get(name) for facts in texts)) for name in names))
