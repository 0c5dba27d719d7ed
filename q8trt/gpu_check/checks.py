"""The steps for each model: build, load, logits, score, threads, loads, latency."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.manifest import ONNX_FILE
from q8trt.errors import DataError
from q8trt.evaluation.benchmark import MIB, findings_of, new_row
from q8trt.gpu_check.bench import Bench
from q8trt.gpu_check.config import TOLERANCES, CheckConfig
from q8trt.gpu_check.grid import NO_GRAPH, Entry, LatencyGrid
from q8trt.gpu_check.journal import Journal, Outcome
from q8trt.gpu_check.models import Subject
from q8trt.gpu_check.repetition import repeat, share
from q8trt.quantization.precision import Precision
from q8trt.reporting import Report
from q8trt.reporting.parity import Difference
from q8trt.runtime.base import Runner
from q8trt.runtime.scores import predict
from q8trt.runtime.torch_runner import TorchRunner
from q8trt.tasks.metrics import compute_from_logits, direction

_THREAD_BATCHES = 16
_OVERFLOW_BATCHES = 4


class ModelCheck:
    """The steps with one model. Each step needs the previous ones, and skips the engines that failed in them."""

    def __init__(
        self, bench: Bench, name: str, config: CheckConfig, journal: Journal, work: Path, stack: contextlib.ExitStack
    ) -> None:
        self._bench, self._name, self._config = bench, name, config
        self._journal, self._work, self._stack = journal, work, stack
        self._subject: Subject | None = None
        self._expected: dict[str, np.ndarray] = {}
        self._folders: dict[Precision, Path] = {}
        self._findings: dict[Precision, tuple[str, ...]] = {}
        self._plans: dict[Precision, float] = {}
        self._running: dict[Precision, Runner] = {}
        self._metrics: dict[Precision, dict[str, float]] = {}

    @property
    def subject(self) -> Subject:
        """The model, which `prepare` makes."""
        assert self._subject is not None
        return self._subject

    def run(self, make: Callable[[], Subject], loads_done: bool, provenance: dict[str, Any]) -> bool:
        """Run all steps, and return whether the loop of loads is done, which only one model runs."""
        if self.prepare(make):
            self.build()
            self.logits()
            self.threads()
            loads_done = self.loads(loads_done)
            self.latency(provenance)
        return loads_done

    def _step(self, what: str, step: Callable[..., Outcome[Any]], *arguments: Any, optional: bool = False) -> Any:
        return self._journal.attempt(f"{self._name}: {what}", partial(step, *arguments), optional)

    def prepare(self, make: Callable[[], Subject]) -> bool:
        """Make the model and its logits in torch; return False if that failed."""

        def load() -> Outcome[Subject]:
            subject = make()
            rows = f"{len(subject.features)} rows of {subject.features.source}"
            return Outcome(f"{subject.weights} weights, {rows}", details={"weights": subject.weights}, value=subject)

        self._subject = self._step("model", load)
        if self._subject is None:
            return False
        self._expected = self._step("torch, FP32 and fake-quantized", self._torch_logits) or {}
        return bool(self._expected)

    def _torch_logits(self) -> Outcome[dict[str, np.ndarray]]:
        logits = {}
        for kind, precision in (("fp32", Precision.FP32), ("fake_quant", Precision.INT8)):
            with TorchRunner(self.subject.model(precision), precision) as runner:
                logits[kind] = self._predict(runner)
        details: dict[str, Any] = {
            "largest_logit": float(np.abs(logits["fp32"]).max()),
            "fake_quant_against_fp32": asdict(Difference.between(logits["fake_quant"], logits["fp32"])),
        }
        figure = f"logits to {details['largest_logit']:.2g}"
        if self.subject.weights == "real":
            scores = {kind: self._score(each) for kind, each in logits.items()}
            details["metrics"] = scores
            metric = self.subject.features.task.main_metric
            figure = f"{metric} x100 " + ", ".join(f"{k} {100 * each[metric]:.2f}" for k, each in scores.items())
        return Outcome(figure, details=details, value=logits)

    def _predict(self, runner: Runner) -> np.ndarray:
        """Return the logits of every row, (rows, num_labels) float32. Raises DataError if one is not finite."""
        most, length = self._config.largest
        size = min(self._config.batch_size, most)
        logits, _ = predict(runner, self.subject.features, self.subject.pad_token_id, length, size)
        if not np.isfinite(logits).all():
            raise DataError(f"{np.sum(~np.isfinite(logits))} of {logits.size} logits are not finite")
        return logits

    def _score(self, logits: np.ndarray) -> dict[str, float]:
        labels = self.subject.features.labels
        if labels is None:
            raise DataError(f"{self.subject.features.source} has no labels to score by")
        return compute_from_logits(self.subject.features.task, logits, labels)

    def build(self) -> None:
        """Export and build an engine of each precision."""
        for precision in self._config.precisions:
            self._step(f"build {precision.label}", self._build, precision)

    def _build(self, precision: Precision) -> Outcome[None]:
        from q8trt.export.onnx import export_onnx

        folder = self._work / precision
        folder.mkdir()
        subject = self.subject
        batches = subject.batches(16, _OVERFLOW_BATCHES) if precision.is_half else []
        exported = export_onnx(
            subject.model(precision), folder / ONNX_FILE, precision, subject.input_names, batches=batches
        )
        self._findings[precision] = findings_of(exported.path, precision, self._config.largest)
        self._folders[precision] = folder  # references run this graph even if the build fails
        plan = self._bench.build(folder, self._config.profiles)
        self._plans[precision] = plan.bytes / MIB
        details: dict[str, Any] = {"onnx_bytes": exported.path.stat().st_size, "findings": self._findings[precision]}
        details["kept_fp32"] = [asdict(op) for op in exported.kept_fp32]
        memory = f", {plan.peak_memory_mib:.0f} MiB at most" if plan.peak_memory_mib else ""
        return Outcome(
            f"plan {plan.bytes / MIB:.1f} MiB in {plan.seconds:.1f} s{memory}", True, {**details, "plan": asdict(plan)}
        )

    def logits(self) -> None:
        """Load each engine, compare its logits with torch's, and score it if the weights are real."""
        for precision in self._config.precisions:
            label = precision.label
            if precision not in self._plans:
                self._journal.skip(f"{self._name}: load {label}", "it was not built")
                continue
            runner = self._step(f"load {label}", self._load, precision)
            if runner is None:
                continue
            logits = self._step(f"logits {label}", self._compare, precision, runner)
            if logits is None:
                continue
            self._running[precision] = runner
            if self.subject.weights == "real":
                self._step(f"score {label}", self._compare_scores, precision, logits)

    def _load(self, precision: Precision) -> Outcome[Runner]:
        runner = self._stack.enter_context(self._bench.open(self._folders[precision], precision, True))
        return Outcome(f"on {runner.label}", True, value=runner)

    def _compare(self, precision: Precision, runner: Runner) -> Outcome[np.ndarray]:
        logits = self._predict(runner)
        against = {kind: Difference.between(expected, logits) for kind, expected in self._expected.items()}
        reference = "fake_quant" if precision.is_quantized else "fp32"
        measured, allowed = against[reference], TOLERANCES[self.subject.weights][precision]
        passed = measured.largest <= allowed.largest and measured.mean <= allowed.mean
        figure = (
            f"to torch {reference}: {measured.largest:.2g}, mean {measured.mean:.2g} "
            f"(allowed {allowed.largest:g}, {allowed.mean:g})"
        )
        details = {
            "rows": len(logits),
            "against": {kind: asdict(each) for kind, each in against.items()},
            "reference": reference,
            "allowed": asdict(allowed),
        }
        return Outcome(figure, passed, details, logits)

    def _compare_scores(self, precision: Precision, logits: np.ndarray) -> Outcome[None]:
        metrics, expected = self._score(logits), self._score(self._expected["fp32"])
        self._metrics[precision] = metrics
        metric = self.subject.features.task.main_metric
        drop = 100 * direction(metric) * (expected[metric] - metrics[metric])
        sample = ", built-in sample, not GLUE" if self.subject.features.is_sample else ""
        figure = f"{metric} x100 {100 * metrics[metric]:.2f}, torch FP32 {100 * expected[metric]:.2f}{sample}"
        details = {"metrics": metrics, "torch_fp32": expected, "drop_points": drop}
        return Outcome(figure, drop <= self._config.max_drop_points, details)

    def threads(self) -> None:
        """Run one engine in several threads, each with its own fork."""
        precision, runner = self._last_running()
        what = f"{self._config.threads} threads over one engine"
        if runner is None:
            self._journal.skip(f"{self._name}: {what}", f"no {precision.label} engine runs")
        else:
            batches = self.subject.batches(min(8, self._config.largest[0]), _THREAD_BATCHES)
            self._step(what, share, runner, batches, self._config.threads)

    def loads(self, done: bool) -> bool:
        """Load the engine of the last precision repeatedly, unless another model did (`done`); return whether it is done."""
        precision, runner = self._last_running()
        if done or runner is None:
            return done
        batch = self.subject.batches(1, 1)[0]
        folder, config = self._folders[precision], self._config

        def once() -> None:
            with self._bench.open(folder, precision, True) as again:
                again.infer(batch)
                again.infer(batch)

        self._step(
            f"{config.loads} loads",
            repeat,
            once,
            self._bench.free_bytes,
            config.loads,
            config.memory_growth_mib,
        )
        return True

    def _last_running(self) -> tuple[Precision, Runner | None]:
        precision = self._config.precisions[-1]
        return precision, self._running.get(precision)

    def latency(self, provenance: dict[str, Any]) -> None:
        """Time engines with and without CUDA graphs, and the references, in turn: a step for each shape, then by layer."""
        entries = [self._entry(precision, runner, True) for precision, runner in self._running.items()]
        for precision in self._running:
            name = f"load {precision.label} without CUDA graph"
            runner = self._step(name, self._without_graph, precision)
            if runner is not None:
                entries.append(self._entry(precision, runner, False))
        for name, make in self._bench.references(self.subject, self._folders).items():
            runner = self._step(f"reference {name}", self._reference, make, optional=True)
            if runner is not None:
                entries.append(Entry(new_row(name, runner), runner))
        if not entries:
            self._journal.skip(f"{self._name}: latency", "neither an engine nor a reference runs")
            return
        grid = LatencyGrid(self.subject, self._config, entries, provenance, self._bench.captures_graphs)
        for shape in self._config.shapes:
            self._keep(self._step(f"latency {shape[0]}x{shape[1]}", grid.measure, shape))
        if self._running:
            self._keep(self._step("time by layer", grid.profile))

    def _keep(self, report: Report | None) -> None:
        if report is not None:
            self._journal.reports[self._name] = report

    def _without_graph(self, precision: Precision) -> Outcome[Runner]:
        runner = self._stack.enter_context(self._bench.open(self._folders[precision], precision, False))
        return Outcome(f"on {runner.label}", value=runner)

    def _reference(self, make: Callable[[], Runner]) -> Outcome[Runner]:
        runner = self._stack.enter_context(make())
        runner.infer(self.subject.batches(1, 1)[0])  # fails here, not in the grid, if it opens but cannot run
        return Outcome(f"on {runner.label}", value=runner)

    def _entry(self, precision: Precision, runner: Runner, graph: bool) -> Entry:
        onnx, how = self._folders[precision] / ONNX_FILE, "" if graph else f", {NO_GRAPH}"
        row = replace(
            new_row(precision.label, runner),
            place=runner.place + how,
            device=runner.device + how,  # another device, so that ratios compare one way of launching
            metrics=self._metrics.get(precision, {}) if graph else {},
            onnx_mib=onnx.stat().st_size / MIB,
            plan_mib=self._plans[precision],
            findings=self._findings[precision],
        )
        return Entry(row, runner, graph, onnx)
