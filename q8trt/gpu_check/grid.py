"""Latencies of one model's engines and references, which take turns at each shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8trt.engine.shapes import Shape
from q8trt.evaluation.benchmark import caveats, with_latencies
from q8trt.gpu_check.config import CheckConfig
from q8trt.gpu_check.journal import Outcome
from q8trt.gpu_check.models import Subject
from q8trt.hardware.gpu import GpuState
from q8trt.reporting import Report, Row
from q8trt.runtime.base import Runner
from q8trt.runtime.timing.latency import Latency, random_inputs
from q8trt.runtime.timing.layers import LayerTimes, measure_layers

NO_GRAPH = "no CUDA graph"


@dataclass(frozen=True)
class Entry:
    """A runner to time.

    Attributes:
        row: its row, without times.
        graph: whether it is an engine with CUDA graphs; None for a reference.
        onnx: the engine's graph, whose matrix products are counted; None for a reference.
    """

    row: Row
    runner: Runner
    graph: bool | None = None
    onnx: Path | None = None


class LatencyGrid:
    """The times of `entries` at one shape after another. `measure` returns the report of all shapes so far.

    Args:
        subject: the model.
        config: iterations and time.
        entries: the runners that take turns; at least one.
        provenance: of the report.
        must_capture: whether an entry with `graph` must report that it launched CUDA graphs.
    """

    def __init__(
        self, subject: Subject, config: CheckConfig, entries: Sequence[Entry],
        provenance: dict[str, Any], must_capture: bool,
    ) -> None:  # fmt: skip
        self._subject, self._config = subject, config
        self._entries, self._provenance, self._must_capture = entries, provenance, must_capture
        self._runners = [entry.runner for entry in entries]
        self._rows = [self._described(entry.row) for entry in entries]
        self._states: list[GpuState] = []

    def _described(self, row: Row) -> Row:
        recipe = self._subject.recipe if row.precision.is_quantized else ""
        return replace(row, model=self._subject.title, recipe=recipe, run=self._subject.run)

    def measure(self, shape: Shape) -> Outcome[Report]:
        """Time one shape, (batch, sequence). The step fails if a requested CUDA graph was not launched."""
        graphs = [entry.onnx for entry in self._entries]
        self._rows, states = with_latencies(self._rows, self._runners, graphs, self._config.timing(shape), self._inputs)
        self._states += states
        latencies = [row.latencies[-1] for row in self._rows]
        missing = [
            entry.row.name
            for entry, latency in zip(self._entries, latencies, strict=True)
            if self._must_capture and entry.graph and latency.cuda_graph is not True
        ]
        figure = self._figure(latencies)
        if missing:
            figure += f"; no CUDA graph was launched for {', '.join(missing)}"
        return Outcome(figure, False if missing else None, value=self.report())

    def profile(self) -> Outcome[Report]:
        """Profile a batch of the largest shape on each engine whose backend has a profiler; return the report with the layers."""
        engines = [index for index, entry in enumerate(self._entries) if entry.graph]
        shape = self._config.largest
        results = measure_layers([self._runners[index] for index in engines], shape, self._inputs)
        for index, layers in zip(engines, results, strict=True):
            if isinstance(layers, LayerTimes):
                self._rows[index] = replace(self._rows[index], layer_times=layers)
        reasons = dict.fromkeys(each for each in results if isinstance(each, str))
        profiled = sum(isinstance(each, LayerTimes) for each in results)
        figure = f"{profiled} of {len(engines)} engines at {shape[0]}x{shape[1]}"
        return Outcome("; ".join((figure, *reasons)), value=self.report())

    def _inputs(self, batch: int, sequence: int) -> dict[str, Any]:
        names, vocabulary = self._subject.input_names, min(1000, self._subject.vocab_size)
        return random_inputs(batch, sequence, vocabulary, input_names=names)

    def _figure(self, latencies: Sequence[Latency]) -> str:
        """``"FP32 0.81, INT8+FP16 0.40; no CUDA graph: FP32 0.95, INT8+FP16 0.62; torch FP32 3.10 ms"``."""
        groups: list[str] = []
        for graph, title in ((True, ""), (False, f"{NO_GRAPH}: "), (None, "")):
            items = [
                f"{entry.row.name} {latency.median_ms:.3g}"
                for entry, latency in zip(self._entries, latencies, strict=True)
                if entry.graph is graph
            ]
            if items:
                groups.append(title + ", ".join(items))
        return "median " + "; ".join(groups) + " ms"

    def report(self) -> Report:
        """Return the figures so far. Engines without CUDA graphs have another place, so ratios compare one way of launching."""
        features, scored = self._subject.features, any(row.metrics for row in self._rows)
        return Report(
            task=features.task.name,
            split=features.split,
            data_source=features.source,
            is_sample=features.is_sample,
            rows_evaluated=len(features) if scored else 0,
            data_fingerprint=features.fingerprint if scored else "",
            main_metric=features.task.main_metric,
            rows=list(self._rows),
            provenance=self._provenance,
            gpus=self._states[-1:],
            notes=caveats(self._states, self._rows),
        )
