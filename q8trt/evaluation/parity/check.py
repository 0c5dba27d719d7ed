"""The parity check of an engine: run its stages in turn, and compare each with the previous one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from q8trt.console.progress import progress
from q8trt.engine.folder import EngineFolder
from q8trt.engine.manifest import SAMPLE_LABEL
from q8trt.errors import BackendError, EngineError
from q8trt.evaluation.config import ParityConfig
from q8trt.evaluation.parity.probed import ProbedOnnxRuntime, ProbedTorch
from q8trt.evaluation.parity.stages import ParityStage, Rows, rows_of, stages_of
from q8trt.hardware.provenance import portable
from q8trt.reporting.parity import Difference, EngineParity, Pair, StageFigures
from q8trt.runtime.base import Runner
from q8trt.runtime.scores import infer_all
from q8trt.tasks.data import DataConfig
from q8trt.tasks.scoring import score

#: Rows whose hidden states are compared.
LAYER_ROWS = 32
#: The part of a module's path that contains the number of its layer, in every supported architecture.
_LAYER = re.compile(r"\.\w*layers?\.(\d+)(?:\.|$)")

States = dict[str, np.ndarray]
"""Module -> its float32 output at the attended positions, (tokens, features), or for each row, (rows, features)."""


@dataclass
class Outputs:
    """The outputs of a stage: batch size -> logits, and batch size -> module -> hidden states."""

    stage: ParityStage
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    states: dict[int, States] = field(default_factory=dict)


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: the outputs of a stage at a batch size."""

    outputs: Outputs
    size: int

    @property
    def logits(self) -> np.ndarray:
        return self.outputs.logits[self.size]

    @property
    def states(self) -> States:
        return self.outputs.states.get(self.size, {})


def check_parity(engine: EngineFolder, data: DataConfig, config: ParityConfig) -> EngineParity:
    """Run every stage of `engine` on the development rows and compare each with the previous one.

    Raises:
        ConfigError: the engine is in no run, so its checkpoints are unknown.
        CheckpointError: a checkpoint of the run is missing or damaged.
        DataError: the rows have no labels, or logits are not finite.
        EngineError: model.onnx was not exported by q8trt.
    """
    rows = rows_of(engine, data, config)
    stages, not_run = stages_of(engine, rows)
    tolerance = config.tolerance or engine.manifest.precision.rounding
    check = _Comparison(rows, tolerance, config.quantization_tolerance)
    for stage in stages:
        try:
            check.run(stage)
        except (BackendError, EngineError) as error:
            if stage.kind != "engine":
                raise
            not_run[stage.name] = str(error)
    return EngineParity(
        name=engine.name,
        folder=portable(engine.folder),
        precision=engine.manifest.precision,
        task=rows.features.task.name,
        main_metric=rows.features.task.main_metric,
        split=rows.features.split,
        data_source=SAMPLE_LABEL if rows.features.is_sample else rows.features.source,
        questions=rows.features.question_count,
        layer_rows=min(LAYER_ROWS, len(rows.features)),
        stages=check.figures,
        pairs=sorted(check.pairs, key=lambda pair: pair.kind == "padding"),
        not_run=not_run,
        wide_sites=check.wide,
        model=engine.manifest.model.name,
        recipe=engine.manifest.recipe_name,
    )


def places_of(modules: Sequence[str]) -> dict[str, list[str]]:
    """Group modules, in the order of computation, into "embeddings", "layer.0" and so on, and "head".

    The last module of a place returns its hidden states, or the logits.
    """
    places: dict[str, list[str]] = {}
    for module in modules:
        number = _LAYER.search(module)
        outside = "head" if "layer.0" in places else "embeddings"
        places.setdefault(f"layer.{number[1]}" if number else outside, []).append(module)
    return places


def short_module(module: str) -> str:
    """Return the path in the layer, such as "attention.self.query"; "output" for a layer, the whole path outside layers."""
    return _LAYER.split(module)[-1] or "output"


def relative_error(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the norm of the difference divided by the norm of `reference`, which is 10 ** (-SQNR / 20) for an SQNR in dB."""
    difference = other.astype(np.float64) - reference
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(reference.astype(np.float64))), 1e-12))


def first_above(errors: Mapping[str, float], tolerance: float | None) -> str | None:
    """Return the first name whose error is above `tolerance` or NaN; None if there is none."""
    return next((name for name, error in errors.items() if tolerance is not None and not error <= tolerance), None)


class _Comparison:
    """A comparison of the stages of one engine. They run in turn, so only one model is in memory."""

    def __init__(self, rows: Rows, tolerance: float, quantization_tolerance: float) -> None:
        self.rows, self.tolerance, self.quantization_tolerance = rows, tolerance, quantization_tolerance
        self.sample = rows.features.take(LAYER_ROWS)
        self.places: dict[str, list[str]] = {}
        self.fp32: Outputs | None = None
        self.before: Outputs | None = None
        self.quantization_error = 0.0
        self.wide: list[str] = []
        self.figures: list[StageFigures] = []
        self.pairs: list[Pair] = []

    @property
    def ends(self) -> dict[str, str]:
        """Place -> the module that returns its hidden states, or the logits of the head."""
        return {place: modules[-1] for place, modules in self.places.items()}

    def run(self, stage: ParityStage) -> None:
        """Run `stage` at each batch size, and compare it with the previous stage and its batch sizes with each other."""
        with stage.open() as runner:
            outputs = self._look(stage, runner)
            if stage.kind == "quantization" and isinstance(runner, ProbedTorch):
                self.wide = self._wide_sites(runner)
            smallest, *others = self.rows.batch_sizes
            for size in self.rows.batch_sizes:
                self._note(outputs, size, runner.device)
                if self.before:
                    self._compare(runner, stage.kind, _Side(self.before, size), _Side(outputs, size))
            for size in others:
                self._compare(runner, "padding", _Side(outputs, smallest), _Side(outputs, size))
        self.fp32, self.before = self.fp32 or outputs, outputs

    def _look(self, stage: ParityStage, runner: Runner) -> Outputs:
        outputs, total = Outputs(stage), sum(len(self.rows.at(size)) for size in self.rows.batch_sizes)
        with progress(self.rows.features.titled(stage.name), total) as advance:
            for size in self.rows.batch_sizes:
                batches = self.rows.batches(self.rows.at(size), size)
                outputs.logits[size] = infer_all(runner, batches, advance)[0]
        if isinstance(runner, ProbedTorch) and not self.places:
            batch = next(self.rows.batches(self.sample, self.rows.batch_sizes[-1]))
            self.places = places_of(runner.modules(batch.arrays))
        if isinstance(runner, ProbedTorch | ProbedOnnxRuntime):
            outputs.states = {
                size: self._states(runner, size, list(self.ends.values())) for size in self.rows.batch_sizes
            }
        return outputs

    def _wide_sites(self, runner: ProbedTorch) -> list[str]:
        """Return lines about the sites of a quantized model with massive channels."""
        from q8trt.quantization.spreads import wide_sites

        batches = self.rows.batches(self.sample, self.rows.batch_sizes[-1])
        return wide_sites(runner.spreads(batch.arrays for batch in batches))

    def _states(self, runner: Any, size: int, modules: Sequence[str], inputs: States | None = None) -> States:
        """Return the outputs of `modules` on the sample rows. With `inputs`, each layer starts from these hidden states."""
        parts: dict[str, list[np.ndarray]] = {module: [] for module in modules}
        done = 0
        for batch in self.rows.batches(self.sample, size):
            mask = batch.arrays["attention_mask"].astype(bool)
            tokens = slice(done, done := done + int(mask.sum()))
            replacements = {module: _padded(states[tokens], mask) for module, states in (inputs or {}).items()}
            for module, output in runner.outputs(batch.arrays, modules, replacements).items():
                parts[module].append(output[mask] if output.ndim == 3 else output)
        return {module: np.concatenate(chunks) for module, chunks in parts.items()}

    def _note(self, outputs: Outputs, size: int, device: str) -> None:
        features, logits = self.rows.at(size), outputs.logits[size]
        before, fp32 = (
            Difference.between(other.logits[size], logits) if other else None for other in (self.before, self.fp32)
        )
        metrics = score(features, logits, self.fp32.logits[size] if self.fp32 else None, self.rows.activation)
        self.figures.append(StageFigures(outputs.stage.name, size, len(features), metrics, before, fp32, device))

    def _tolerance(self, kind: str, shows_layers: bool) -> float | None:
        if kind == "training":
            return None
        if kind == "quantization":
            return self.quantization_tolerance
        # Without hidden states, rounding has grown through all layers, but not beyond the effect of quantization.
        return self.tolerance if shows_layers else max(self.tolerance, self.quantization_error)

    def _compare(self, runner: Runner, kind: str, first: _Side, second: _Side) -> None:
        """Compare `second` with `first`; `runner` runs the stage of `second`."""
        rows = min(len(first.logits), len(second.logits))
        logits = first.logits[:rows], second.logits[:rows]
        error, alone, so_far = relative_error(*logits), {}, {}
        if kind == "quantization":
            self.quantization_error = max(self.quantization_error, error)
        tolerance, module = self._tolerance(kind, bool(second.states)), None
        if second.states:
            forced = self._states(runner, second.size, list(self.ends.values()), self._layer_inputs(first))
            alone = {place: relative_error(first.states[end], forced[end]) for place, end in self.ends.items()}
            so_far = {place: relative_error(first.states[end], second.states[end]) for place, end in self.ends.items()}
        parts_at = first_above(alone or {"logits": error}, tolerance)
        if alone and parts_at:
            module = short_module(self._first_module(runner, parts_at, tolerance, first, second))
        pair = Pair(
            first=first.outputs.stage.name + f", batch {first.size}" * (kind == "padding"),
            second=second.outputs.stage.name + f", batch {second.size}" * (kind == "padding"),
            kind=kind,
            batch_size=second.size,
            tolerance=tolerance,
            logits=Difference.between(*logits),
            logits_error=error,
            alone=alone,
            so_far=so_far,
            parts_at=parts_at,
            module=module,
        )
        self.pairs.append(pair)

    def _layer_inputs(self, side: _Side) -> States:
        """Return the hidden states of `side` from which the layers of another stage start: all except the head's logits."""
        return {end: side.states[end] for place, end in self.ends.items() if place != "head"}

    def _first_module(self, runner: Runner, place: str, tolerance: float | None, first: _Side, second: _Side) -> str:
        """Return the first module of `place` whose error is above `tolerance`; the last one if there is none."""
        modules = self.places[place]
        # Only the model of `runner` is in memory. The other stage is opened again unless both sides are one stage.
        again = contextlib.nullcontext(runner) if first.outputs is second.outputs else first.outputs.stage.open()
        with again as other:
            reference = self._states(other, first.size, modules)
        forced = self._states(runner, second.size, modules, self._layer_inputs(first))
        errors = {module: relative_error(reference[module], forced[module]) for module in modules}
        return first_above(errors, tolerance) or modules[-1]


def _padded(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return float32 (batch, sequence, features): `states` (tokens, features) where `mask` (batch, sequence) is set, else 0."""
    array = np.zeros((*mask.shape, states.shape[-1]), np.float32)
    array[mask] = states
    return array
