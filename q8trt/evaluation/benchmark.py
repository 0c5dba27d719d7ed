"""Benchmarks: one report on several engines, with accuracy on the development set, latency and size."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.console.commands import command
from q8trt.console.progress import progress
from q8trt.engine.folder import EngineFolder
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE
from q8trt.engine.shapes import covering, largest, show_profiles
from q8trt.errors import ConfigError
from q8trt.evaluation.config import BenchmarkConfig
from q8trt.evaluation.data import Batching
from q8trt.hardware.gpu import GpuState, gpu_states
from q8trt.hardware.provenance import portable
from q8trt.lint import LintConfig, lint
from q8trt.models import checkpoints, load_tokenizer
from q8trt.quantization.precision import Precision
from q8trt.reporting import Gate, Parity, Report, Row
from q8trt.runtime import find_runtime, open_runner
from q8trt.runtime.base import Runner
from q8trt.runtime.timing.config import TimingConfig
from q8trt.runtime.timing.hardware import clock_warning, peak_tops
from q8trt.runtime.timing.latency import Latency, measure, random_inputs
from q8trt.runtime.timing.layers import LayerTimes, measure_layers
from q8trt.runtime.timing.lengths import measure_lengths
from q8trt.runtime.timing.work import rated, work_of_onnx
from q8trt.runtime.torch_runner import TorchRunner
from q8trt.tasks.data import DataConfig, Features

MIB = 2**20
MakeInputs = Callable[[int, int], dict[str, np.ndarray]]
"""(batch, sequence) -> input name -> array (batch, sequence)."""


def benchmark_engines(
    engines: Sequence[EngineFolder],
    data: DataConfig | None,
    config: BenchmarkConfig,
    provenance: dict[str, Any],
) -> Report:
    """Score and time `engines` on this machine.

    Args:
        engines: at least one; each becomes a row.
        data: the source of the development set; None skips accuracy.
        config: backend, shapes and iterations of the timing, and the other measurements.
        provenance: provenance of the report, see `q8trt.hardware.provenance`.

    Raises:
        Q8TRTError: the data are bad, an engine is damaged, or the backend is missing.
    """
    timing = _within_profiles(config.timing, engines)
    make_inputs = _random_inputs(engines)
    with contextlib.ExitStack() as stack:
        runners = [
            stack.enter_context(open_runner(each.folder, config.backend, timing.shapes, config.plans))
            for each in engines
        ]
        rows = distinct([_row(engine, runner) for engine, runner in zip(engines, runners, strict=True)])
        first: Features | None = None
        if data:
            batching = Batching.of(engines, data, config.per_device_eval_batch_size, config.buckets)
            splits = batching.tokenized(engines[0], data)
            first = next(iter(splits.values()))
            references = batching.references(engines, splits)
            rows = [
                _scored(*each, splits, batching, config.parity, references)
                for each in zip(rows, engines, runners, strict=True)
            ]
            rows = _with_lengths(rows, runners, first, batching, timing.max_seconds)
        graphs = [engine.folder / ONNX_FILE for engine in engines]
        with progress("Timing", timing.rounds) as advance:
            rows, states = with_latencies(rows, runners, graphs, timing, make_inputs, advance)
        reasons: list[str] = []
        if config.layer_times:
            layers = measure_layers(runners, max(timing.shapes, key=math.prod), make_inputs)
            rows, reasons = with_layers(rows, layers)
    task = first.task if first else engines[0].manifest.task
    return Report(
        task=task.name,
        split=first.split if first else "-",
        data_source=first.source if first else "accuracy was not measured",
        is_sample=bool(first and first.is_sample),
        rows_evaluated=len(first) if first else 0,
        questions_evaluated=first.question_count if first else None,
        data_fingerprint=first.fingerprint if first else "",
        main_metric=task.main_metric,
        rows=rows,
        provenance=provenance,
        gpus=states[-1:],
        notes=[*caveats(states, rows), *reasons],
    )


def new_row(name: str, runner: Runner) -> Row:
    """Return the row of a runner, without measurements."""
    return Row(name, runner.place, runner.backend, runner.device, runner.precision, metrics={})


def _row(engine: EngineFolder, runner: Runner) -> Row:
    manifest, path = engine.manifest, engine.folder / ONNX_FILE
    return replace(
        new_row(engine.name, runner),
        onnx_mib=_mib(engine, ONNX_FILE),
        plan_mib=_mib(engine, PLAN_FILE),
        torch_metrics=_torch_scores(engine, manifest.stage),
        fp32_metrics=_torch_scores(engine, "fp32"),
        folder=portable(engine.folder),
        model=manifest.model.name,
        recipe=manifest.recipe_name,
        in_float=manifest.record.in_float,
        run=portable(engine.run.path if engine.run else engine.folder),
        findings=findings_of(path, manifest.precision, manifest.largest_shape),
    )


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Return `rows`, with the fact by which rows of one name and place differ in their names: ``"PTQ INT8 linear"``.

    The fact is the recipe if all of them differ in it, else the model, the run or the engine folder.
    """
    alike: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        alike[row.name, row.place].append(row)
    return [replace(row, name=_distinct_name(row, alike[row.name, row.place])) for row in rows]


def _distinct_name(row: Row, alike: Sequence[Row]) -> str:
    if len(alike) == 1:
        return row.name
    facts = [(each.recipe, each.model, Path(each.run).name, Path(each.folder).name) for each in alike]
    index = next((number for number, names in enumerate(zip(*facts, strict=True)) if len({*names}) == len(alike)), None)
    return row.name if index is None else f"{row.name} {facts[alike.index(row)][index]}"


def _mib(engine: EngineFolder, name: str) -> float | None:
    entry = engine.manifest.files.get(name)
    return entry.bytes / MIB if entry else None


def _torch_scores(engine: EngineFolder, stage: str) -> dict[str, float] | None:
    """Return the scores of the torch model of a stage on the first development set, from the manifest, or None."""
    return next(iter((engine.manifest.metrics.get(f"torch_{stage}") or {}).values()), None)


def findings_of(path: Path, precision: Precision, largest_shape: tuple[int, int] | None) -> tuple[str, ...]:
    """Return the linter's findings on a graph above level "info", the worst first; () for FP32, which has no quantizers."""
    if precision == Precision.FP32 or not path.is_file():
        return ()
    report = lint(path, LintConfig(max_shapes=largest_shape))
    return tuple(f"{each.rule}: {each.text}" for each in report.findings if each.level != "info")


def _scored(
    row: Row,
    engine: EngineFolder,
    runner: Runner,
    splits: Mapping[str, Features],
    batching: Batching,
    parity: bool,
    references: Mapping[str, np.ndarray],
) -> Row:
    """Return `row` with its metrics and, with `parity`, the distance of its logits from the torch model's on the first split."""
    metrics: dict[str, float] = {}
    distance = None
    for number, (split, rows) in enumerate(splits.items()):
        title, reference = f"Scoring {engine.name} on {split}", references.get(split)
        scores = batching.score(runner, rows, engine.manifest.task.activation, title, reference)
        # MNLI has two development sets; the metrics of the first one keep their names.
        metrics |= {name if number == 0 else f"{split}.{name}": value for name, value in scores.metrics.items()}
        if parity and number == 0:
            distance = _parity(engine, rows, scores.logits, batching)
    return replace(row, metrics=metrics, parity=distance)


def _parity(engine: EngineFolder, rows: Features, logits: np.ndarray, batching: Batching) -> Parity:
    """Return the distance of the engine's logits from those of the torch model from which it was exported."""
    checkpoint = engine.run.checkpoint(engine.manifest.stage) if engine.run else None
    if checkpoint is None:
        raise ConfigError(f"{engine.folder} is in no run folder, so its torch checkpoint is not known; drop --parity")
    if checkpoints.is_quantized(checkpoint):
        model = checkpoints.load_quantized(checkpoint)[0]
    else:
        model = checkpoints.load_finetuned(checkpoint, rows.task)
    with TorchRunner(model, engine.manifest.precision) as runner:
        reference = batching.logits(runner, rows, "torch, for parity")
    difference = np.abs(logits - reference)
    return Parity(float(difference.max()), float(difference.mean()), float(np.abs(reference).max()))


def _with_lengths(
    rows: Sequence[Row], runners: Sequence[Runner], features: Features, batching: Batching, max_seconds: float
) -> list[Row]:
    """Return `rows` with the throughput on the development rows."""
    with progress(features.titled("Timing length buckets"), len(features)) as advance:
        lengths = measure_lengths(
            runners, features, batching.pad_token_id, batching.max_length, batching.batch_size, batching.buckets,
            max_seconds, advance,
        )  # fmt: skip
    return [replace(row, lengths=each) for row, each in zip(rows, lengths, strict=True)]


def with_latencies(
    rows: Sequence[Row],
    runners: Sequence[Runner],
    graphs: Sequence[Path | None],
    timing: TimingConfig,
    make_inputs: MakeInputs,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[Row], list[GpuState]]:
    """Return `rows` with the latencies of `runners`, and the states of their GPU, one after each shape; [] on the CPU.

    Args:
        rows: one row for each runner.
        runners: the runners, which are timed in turn.
        graphs: the ONNX file of each runner, whose matrix products are counted; None if it is unknown.
        timing: shapes and iterations.
        make_inputs: function that makes a batch.
        on_progress: function that is called with the number of finished rounds.
    """
    devices = {runner.device for runner in runners}
    states: list[GpuState] = []

    def look() -> None:
        if devices != {"cpu"}:
            states.extend([state for state in gpu_states() if state.name in devices][:1])

    latencies = measure(runners, timing, make_inputs, on_progress, on_shape=look)
    timed = [
        replace(row, latencies=[*row.latencies, *_with_work(times, graph, runner)])
        for row, runner, graph, times in zip(rows, runners, graphs, latencies, strict=True)
    ]
    return timed, states


def _with_work(latencies: Sequence[Latency], graph: Path | None, runner: Runner) -> list[Latency]:
    """Return latencies with the rate of the model's matrix products and its share of the device's peak."""
    work = work_of_onnx(graph) if graph and graph.is_file() else None
    peak = peak_tops(runner.device, runner.precision)
    return [rated(latency, work, peak) for latency in latencies]


def with_layers(rows: Sequence[Row], layers: Sequence[LayerTimes | str]) -> tuple[list[Row], list[str]]:
    """Return `rows` with the results of `measure_layers`, and a note for each row without layer times."""
    pairs = list(zip(rows, layers, strict=True))
    profiled = [replace(row, layer_times=None if isinstance(each, str) else each) for row, each in pairs]
    return profiled, [
        f"{row.name} on {row.place}: no layer times: {each}" for row, each in pairs if isinstance(each, str)
    ]


def caveats(states: Sequence[GpuState], rows: Sequence[Row]) -> list[str]:
    """Return notes about the clocks of the GPU and about the runtimes of the rows."""
    clock = clock_warning(list(states))
    precisions: dict[tuple[str, str], list[Precision]] = {}
    for row in rows:
        precisions.setdefault((row.backend, row.device), []).append(row.precision)
    notes = [clock] if clock else []
    for (backend, device), names in precisions.items():
        if runtime := find_runtime(backend):
            notes += runtime.caveats(device, names)
    return notes


def _random_inputs(engines: Sequence[EngineFolder]) -> MakeInputs:
    """Return a function that makes random batches with token ids of every engine's vocabulary."""
    names = engines[0].manifest.inputs
    vocab_size = min(1000, *(len(load_tokenizer(str(engine.folder))) for engine in engines))
    return lambda batch, sequence: random_inputs(batch, sequence, vocab_size, input_names=names)


def _within_profiles(config: TimingConfig, engines: Sequence[EngineFolder]) -> TimingConfig:
    """Return `config` with the default shapes limited to those that every engine accepts. Chosen shapes must fit.

    Raises:
        ConfigError: a chosen shape is outside the profiles of an engine.
    """
    plans = [(engine.folder, engine.manifest.profiles) for engine in engines if engine.manifest.profiles]
    if config == replace(config, shapes=TimingConfig().shapes) and plans:
        batches, sequences = zip(*(largest(profiles) for _, profiles in plans), strict=True)
        limits = (min(batches), min(sequences))
        fitting = dict.fromkeys((min(b, limits[0]), min(s, limits[1])) for b, s in config.shapes)
        config = replace(config, shapes=tuple(fitting))
    for shape in config.shapes:
        for folder, profiles in plans:
            if covering(profiles, shape) is None:
                raise ConfigError(
                    f"--shapes {shape[0]}x{shape[1]} is outside the profile of {folder}: {show_profiles(profiles)}; "
                    "time smaller ones, or build it again with larger --max_shapes"
                )
    return config


def check_gate(gate: Gate, engines: Sequence[EngineFolder], data: DataConfig | None) -> None:
    """Check before the measurements that the engines have the rows that a gate compares.

    Raises:
        ConfigError: no engine can be judged, or there is no FP32 baseline.
    """
    option = "--max_drop" if gate.max_drop is not None else "--min_speedup"
    precisions = {engine.manifest.precision for engine in engines}
    if gate and precisions == {Precision.FP32}:
        raise ConfigError(
            f"{option} compares INT8 and FP16 engines with FP32, but all engines are FP32; add another with --engine DIR"
        )
    if gate.max_drop is not None and data is None:
        raise ConfigError("--max_drop needs the score on the development set; drop --no_accuracy")
    if gate.min_speedup is not None and Precision.FP32 not in precisions:
        raise ConfigError(
            f"--min_speedup needs an FP32 engine to compare with; build it, and name it with --engine: "
            f"{_build_fp32(engines)}"
        )
    unknown = [engine.folder for engine in engines if not engine.manifest.metrics.get("torch_fp32")]
    if gate.max_drop is not None and Precision.FP32 not in precisions and unknown:
        raise ConfigError(
            f"--max_drop needs an FP32 score, and {unknown[0]} records none; add an FP32 engine with --engine"
        )


def _build_fp32(engines: Sequence[EngineFolder]) -> str:
    run = next((engine.run for engine in engines if engine.run), None)
    return command("build-engine", "--fp32", *(["--checkpoint", str(run.path)] if run else []))
