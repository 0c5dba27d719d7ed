"""Engines -> one report: accuracy on the development set, latency, size, side by side in one run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
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
from q8trt.hardware.gpu import GpuState, gpu_states
from q8trt.hardware.provenance import portable
from q8trt.lint import LintConfig, lint
from q8trt.models import checkpoints
from q8trt.quantization.precision import Precision
from q8trt.reporting import Gate, Parity, Report, Row
from q8trt.runs.config import config_of_run
from q8trt.runtime import find_runtime, open_runner
from q8trt.runtime.base import Runner
from q8trt.runtime.scores import evaluate, predict
from q8trt.runtime.timing.config import TimingConfig
from q8trt.runtime.timing.hardware import clock_warning, peak_tops
from q8trt.runtime.timing.latency import Latency, measure, random_inputs
from q8trt.runtime.timing.layers import LayerTimes, measure_layers
from q8trt.runtime.timing.lengths import measure_lengths
from q8trt.runtime.timing.work import rated, work_of_onnx
from q8trt.tasks.data import DataConfig, Features, load_dev, tokenize

MIB = 2**20


def data_config(engines: Sequence[EngineFolder], given: DataConfig | None) -> DataConfig:
    """The rows to score on: those given, else those that the run was trained with.

    Raises:
        ConfigError: none were given and the engine lies in no run; or the engines answer different tasks.
    """
    tasks = {engine.manifest.task.name for engine in engines}
    if len(tasks) > 1:
        raise ConfigError(
            f"the engines answer different tasks ({', '.join(sorted(tasks))}); compare one task at a time"
        )
    if given is not None:
        if given.resolved_task.name not in tasks:
            raise ConfigError(f"--task {given.task}, but the engine was built for {tasks.pop()}")
        _check_labels(engines, given)
        return given
    run = next((engine.run for engine in engines if engine.run), None)
    if run is None:
        raise ConfigError(
            f"{engines[0].folder} lies in no run folder, so its development set is not known; "
            "give --task and --data_dir (or --no_accuracy)"
        )
    data = config_of_run(run, "give --task and the options of the data to score on other rows").data
    _check_labels(engines, data)
    return data


def _check_labels(engines: Sequence[EngineFolder], data: DataConfig) -> None:
    """Raise ConfigError if the rows count their labels in another order than an engine its outputs."""
    labels = list(data.resolved_task.labels)
    for engine in engines:
        if engine.manifest.task.labels != labels:
            theirs = " ".join(engine.manifest.task.labels) or "none, it answers with a score"
            raise ConfigError(
                f"{engine.folder} has the labels {theirs}, the data {' '.join(labels) or 'scores'}; give --label_list "
                "the engine's labels in their order"
            )


def compare(
    engines: Sequence[EngineFolder],
    data: DataConfig | None,
    config: BenchmarkConfig,
    provenance: dict[str, Any],
) -> Report:
    """Score and time `engines` on this machine.

    Args:
        engines: at least one; each becomes a row.
        data: where the development set is; None leaves accuracy out.
        config: backend, shapes and iterations of the timing, and what else is measured.
        provenance: of the report, see `q8trt.hardware.provenance`.

    Raises:
        Q8TRTError: bad data, a damaged engine, a backend that is absent.
    """
    timing, buckets = _within_profiles(config.timing, engines), config.buckets
    with contextlib.ExitStack() as stack:
        runners = [
            stack.enter_context(open_runner(each.folder, config.backend, timing.shapes, config.plans))
            for each in engines
        ]
        largest = _largest_batch(engines, data, config.per_device_eval_batch_size)
        splits = _tokenized(engines[0], data, largest[1]) if data else {}
        scored = [
            _score(engine, runner, splits, largest, buckets, config.parity)
            for engine, runner in zip(engines, runners, strict=True)
        ]
        first = next(iter(splits.values()), None)
        lengths = _lengths(engines, runners, first, largest, buckets, timing.max_seconds)
        inputs = _inputs(engines)
        latencies, states = _time(runners, timing, inputs)
        layers = measure_layers(runners, max(timing.shapes, key=math.prod), inputs) if config.layer_times else []
    rows = [
        Row(**fields, latencies=_with_work(engine, runner, times), lengths=each)
        for engine, runner, fields, times, each in zip(engines, runners, scored, latencies, lengths, strict=True)
    ]
    rows, notes = with_layers(rows, layers)
    task = engines[0].manifest.task
    return Report(
        task=task.name,
        split=first.split if first else "-",
        data_source=first.source if first else "accuracy was not measured",
        is_sample=bool(first and first.is_sample),
        rows_evaluated=len(first) if first else 0,
        data_fingerprint=first.fingerprint if first else "",
        main_metric=task.main_metric,
        rows=rows,
        provenance=provenance,
        gpus=states[-1:],
        notes=[*_notes(states, rows), *notes],
    )


def _notes(states: Sequence[GpuState], rows: Sequence[Row]) -> list[str]:
    """What a reader must know of the machine."""
    clock = clock_warning(list(states))
    precisions: dict[tuple[str, str], list[Precision]] = {}
    for row in rows:
        precisions.setdefault((row.backend, row.device), []).append(row.precision)
    notes = [clock] if clock else []
    for (backend, device), names in precisions.items():
        if runtime := find_runtime(backend):
            notes += runtime.caveats(device, names)
    return notes


def with_layers(rows: Sequence[Row], layers: Sequence[LayerTimes | str]) -> tuple[list[Row], list[str]]:
    """`rows` with what `measure_layers` found, and a note for each that has none; [] leaves all as they are."""
    if not layers:
        return list(rows), []
    pairs = list(zip(rows, layers, strict=True))
    kept = [replace(row, layer_times=None if isinstance(found, str) else found) for row, found in pairs]
    return kept, [
        f"{row.name} on {row.place}: no layer times: {found}" for row, found in pairs if isinstance(found, str)
    ]


def check_gate(gate: Gate, engines: Sequence[EngineFolder], data: DataConfig | None) -> None:
    """Refuse, before anything is measured, a gate that these engines cannot answer.

    Raises:
        ConfigError: there is nothing to judge, or nothing to judge it by.
    """
    option = "--max_drop" if gate.max_drop is not None else "--min_speedup"
    precisions = {engine.manifest.precision for engine in engines}
    if gate and precisions == {Precision.FP32}:
        raise ConfigError(
            f"{option} judges INT8 and FP16 engines by FP32, and only FP32 is here; add --engine DIR of another"
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


def _lengths(
    engines: Sequence[EngineFolder],
    runners: Sequence[Runner],
    rows: Features | None,
    largest: tuple[int, int],
    buckets: Sequence[int],
    max_seconds: float,
) -> list[Any]:
    """`Lengths` of each runner; None each without rows."""
    if rows is None:
        return [None] * len(runners)
    batch_size, max_length = largest
    pad_token_id = engines[0].manifest.model.pad_token_id
    with progress("Timing length buckets", len(rows)) as advance:
        return measure_lengths(runners, rows, pad_token_id, max_length, batch_size, buckets, max_seconds, advance)


def _with_work(engine: EngineFolder, runner: Runner, latencies: Sequence[Latency]) -> list[Latency]:
    """The latencies with the rate of the model's matrix products, and its share of the peak."""
    path = engine.folder / ONNX_FILE
    work = work_of_onnx(path) if path.is_file() else None
    peak = peak_tops(runner.device, engine.manifest.precision)
    return [rated(latency, work, peak) for latency in latencies]


def _largest_batch(engines: Sequence[EngineFolder], data: DataConfig | None, batch_size: int) -> tuple[int, int]:
    """Rows a batch and tokens a row, at most, while scoring: what was asked for, cut to what every plan accepts."""
    limits = [shape for engine in engines if (shape := engine.manifest.largest_shape)]
    wanted = (batch_size, data.max_seq_length if data else 1)
    return min([wanted[0], *(batch for batch, _ in limits)]), min([wanted[1], *(length for _, length in limits)])


def _tokenized(engine: EngineFolder, data: DataConfig, max_length: int) -> dict[str, Features]:
    tokenizer = checkpoints.load_tokenizer(str(engine.folder))
    return {split: tokenize(rows, tokenizer, max_length) for split, rows in load_dev(data).items()}


def _score(
    engine: EngineFolder,
    runner: Runner,
    splits: dict[str, Features],
    largest: tuple[int, int],
    buckets: Sequence[int],
    parity: bool,
) -> dict[str, Any]:
    """The fields of the engine's row, latency apart; `largest` is (rows a batch, tokens a row)."""
    metrics: dict[str, float] = {}
    pad_token_id, measured = engine.manifest.model.pad_token_id, None
    batch_size, max_length = largest
    for number, (split, rows) in enumerate(splits.items()):
        with progress(f"Scoring {engine.name} on {split}", len(rows)) as advance:
            activation = engine.manifest.task.activation
            result = evaluate(
                runner, rows, rows.task, pad_token_id, max_length, batch_size, advance, buckets, activation
            )
        # MNLI has two development sets; the first one's metrics go by their own names.
        metrics |= {name if number == 0 else f"{split}.{name}": value for name, value in result.metrics.items()}
        if parity and measured is None:
            measured = _parity(engine, rows, result.logits, largest, buckets)
    return {
        "name": engine.name,
        "label": runner.label,
        "backend": runner.backend,
        "device": runner.device,
        "precision": engine.manifest.precision,
        "metrics": metrics,
        "onnx_mib": _mib(engine, ONNX_FILE),
        "plan_mib": _mib(engine, PLAN_FILE),
        "torch_metrics": _torch_scores(engine, engine.manifest.stage),
        "fp32_metrics": _torch_scores(engine, "fp32"),
        "parity": measured,
        "folder": portable(engine.folder),
        "findings": findings_of(engine.folder / ONNX_FILE, engine.manifest.precision, engine.manifest.largest_shape),
    }


def _torch_scores(engine: EngineFolder, stage: str) -> dict[str, float] | None:
    """What the torch model of a stage of the run scored on its (first) development set, as the manifest has it."""
    return next(iter((engine.manifest.metrics.get(f"torch_{stage}") or {}).values()), None)


def findings_of(path: Path, precision: Precision, largest_shape: tuple[int, int] | None) -> tuple[str, ...]:
    """What the linter holds against the graph on TensorRT, the worst first; FP32 is not meant to be quantized."""
    if precision == Precision.FP32 or not path.is_file():
        return ()
    report = lint(path, LintConfig(max_shapes=largest_shape))
    return tuple(f"{each.rule}: {each.text}" for each in report.findings if each.level != "info")


def _mib(engine: EngineFolder, name: str) -> float | None:
    entry = engine.manifest.files.get(name)
    return entry.bytes / MIB if entry else None


def _parity(
    engine: EngineFolder, rows: Features, logits: np.ndarray, largest: tuple[int, int], buckets: Sequence[int]
) -> Parity:
    """How far the engine's logits lie from those of the torch model that it was exported from."""
    from q8trt.runtime.torch_runner import TorchRunner

    checkpoint = engine.run.checkpoint(engine.manifest.stage) if engine.run else None
    if checkpoint is None:
        raise ConfigError(f"{engine.folder} lies in no run folder, so its torch checkpoint is not known; drop --parity")
    if checkpoints.is_quantized(checkpoint):
        model = checkpoints.load_quantized(checkpoint)[0]
    else:
        model = checkpoints.load_finetuned(checkpoint, rows.task)
    pad_token_id, (batch_size, max_length) = engine.manifest.model.pad_token_id, largest
    with TorchRunner(model, engine.manifest.precision) as runner, progress("torch, for parity", len(rows)) as advance:
        reference, _ = predict(runner, rows, pad_token_id, max_length, batch_size, advance, buckets)
    difference = np.abs(logits - reference)
    return Parity(float(difference.max()), float(difference.mean()), float(np.abs(reference).max()))


def _within_profiles(config: TimingConfig, engines: Sequence[EngineFolder]) -> TimingConfig:
    """The default shapes cut to what the engines accept; shapes that the user chose are refused if they do not fit.

    Raises:
        ConfigError: a chosen shape lies outside the profile of an engine.
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
                    f"--shapes {shape[0]}x{shape[1]} lies outside the profile of {folder}: {show_profiles(profiles)}; "
                    "time smaller ones, or build it again with larger --max_shapes"
                )
    return config


def _inputs(engines: Sequence[EngineFolder]) -> Callable[[int, int], dict[str, np.ndarray]]:
    """What makes a batch that every engine takes, from (batch, sequence)."""
    names = engines[0].manifest.inputs
    vocab_size = min(1000, *(len(checkpoints.load_tokenizer(str(engine.folder))) for engine in engines))
    return lambda batch, sequence: random_inputs(batch, sequence, vocab_size, input_names=names)


def _time(
    runners: Sequence[Runner], config: TimingConfig, inputs: Callable[[int, int], dict[str, np.ndarray]]
) -> tuple[list[list[Latency]], list[GpuState]]:
    """Latencies of each runner, and the GPU that they ran on, looked at after each shape; [] where none ran on a GPU."""
    devices, states = {runner.device for runner in runners}, []

    def look() -> None:
        if devices != {"cpu"}:
            states.extend([state for state in gpu_states() if state.name in devices][:1])

    with progress("Timing", config.rounds) as advance:
        return measure(runners, config, inputs, advance, on_shape=look), states
