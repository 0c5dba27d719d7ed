"""The work of each kind of step, which runs in the process of the step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.layers import LOG_PREFIX, layers_of_inspector, layers_of_log
from q8trt.errors import BackendError, EngineError
from q8trt.files import write_json, write_text
from q8trt.gpu_check.journal import Outcome
from q8trt.gpu_check.prepared.forecast import compare
from q8trt.gpu_check.prepared.kit import EngineFile, Kind, Kit, Step
from q8trt.gpu_check.prepared.machine import Machine
from q8trt.gpu_check.repetition import repeat, share
from q8trt.runtime.timing.config import TimingConfig
from q8trt.runtime.timing.hardware import peak_tops
from q8trt.runtime.timing.latency import Latency, measure, random_inputs
from q8trt.runtime.timing.lengths import measure_lengths
from q8trt.runtime.timing.work import Work, rated
from q8trt.tasks.data import Features
from q8trt.tasks.glue import get_task

_VOCABULARY = 1000
_THREADS = 8
_GROWTH_MIB = 8.0
_SECONDS_A_SHAPE = 8.0


@dataclass(frozen=True)
class Place:
    """The folders of a check, and its machine.

    Attributes:
        kit: the prepared check in `folder`.
        results: the folder of results; the builder's output is in its folders ``layers/``, ``logs/`` and ``plans/``.
    """

    kit: Kit
    folder: Path
    results: Path
    machine: Machine

    def plan(self, engine: EngineFile) -> Path:
        """Return the path of an engine's plan."""
        return engine.plan(self.results)


def do(place: Place, step: Step) -> Outcome[None]:
    """Do the work of a step. Raises a Q8TRTError if it cannot be done."""
    work: dict[Kind, Callable[[Place, Step], Outcome[None]]] = {
        Kind.BUILD: _build,
        Kind.LATENCY: _latency,
        Kind.THREADS: _threads,
        Kind.ARRAYS: _arrays,
        Kind.LOADS: _loads,
        Kind.BUCKETS: _buckets,
        Kind.TORCH: _torch,
    }
    return work[step.kind](place, step)


class _BuilderLog(logging.Handler):
    """A log handler that stores the builder's lines of level INFO and above, and the message that lists the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.layers = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(LOG_PREFIX):
            self.layers = text
        elif record.levelno >= logging.INFO:
            self.lines.append(text)


def _build(place: Place, step: Step) -> Outcome[None]:
    engine = place.kit.engine(step.engines[0])
    plan, log, logger = place.plan(engine), _BuilderLog(), logging.getLogger("q8trt.tensorrt")
    for folder in ("plans", "layers", "logs"):
        (place.results / folder).mkdir(exist_ok=True)
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    partial = plan.with_suffix(".partial")
    try:
        cache = place.results / "timing-cache"
        info = place.machine.build(place.folder / engine.onnx, partial, engine.profiles, cache)
    finally:
        logger.removeHandler(log)
        write_text(place.results / "logs" / f"{engine.slug}.log", "\n".join([*log.lines, log.layers, ""]))
    partial.rename(plan)
    details: dict[str, Any] = {"onnx_bytes": (place.folder / engine.onnx).stat().st_size, "plan": asdict(info)}
    figure = f"plan {info.bytes / 2**20:.1f} MiB in {info.seconds:.1f} s"
    agreement, details["forecast"] = _forecast(place, engine, plan, log.layers)
    passed, compared, logits = _compare(place, engine, plan)
    return Outcome("; ".join(filter(None, (figure, agreement, compared))), passed, details | logits)


def _forecast(place: Place, engine: EngineFile, plan: Path, log: str) -> tuple[str, dict[str, Any] | None]:
    """Compare the linter's forecast with the layers of the plan, and write the layers to a file."""
    text = place.machine.inspect(plan)
    if text is not None:
        write_text(place.results / "layers" / f"{engine.slug}.json", text)
    try:
        layers = layers_of_inspector(text) if text is not None else layers_of_log(log)
    except ValueError as error:
        return f"layers not known: {error}", None
    comparison = compare(engine.sites, layers)
    agreed, sites = sum(comparison.agreements.values()), len(engine.sites)
    write_json(place.results / "layers" / f"{engine.slug}-forecast.json", asdict(comparison))
    return f"forecast holds for {agreed} of {sites} parts", asdict(comparison)


def _compare(place: Place, engine: EngineFile, plan: Path) -> tuple[bool | None, str, dict[str, Any]]:
    """Compare the logits of the engine's rows with torch's, and score them if the rows have labels."""
    if engine.rows is None:
        return None, "", {}
    with np.load(place.folder / engine.rows.file) as arrays, place.machine.open(plan, engine.precision) as runner:
        count = sum(name.startswith(f"{engine.inputs[0]}.") for name in arrays)
        batches = [{name: arrays[f"{name}.{number}"] for name in engine.inputs} for number in range(count)]
        logits = np.concatenate([runner.infer(batch) for batch in batches])
        expected = {name.removeprefix("logits."): arrays[name] for name in arrays if name.startswith("logits.")}
        labels = arrays.get("labels")
    if not np.isfinite(logits).all():
        raise EngineError(f"{np.sum(~np.isfinite(logits))} of {logits.size} logits are not finite")
    apart = {name: np.abs(logits.astype(np.float64) - each) for name, each in expected.items()}
    details: dict[str, Any] = {
        "rows": len(logits),
        "reference": engine.rows.reference,
        "against": {name: {"largest": float(each.max()), "mean": float(each.mean())} for name, each in apart.items()},
    }
    largest, mean = details["against"][engine.rows.reference].values()
    figure = f"to torch {engine.rows.reference}: {largest:.2g}, mean {mean:.2g}"
    passed = None
    if engine.rows.largest is not None and engine.rows.mean is not None:
        passed = largest <= engine.rows.largest and mean <= engine.rows.mean
        figure += f" (allowed {engine.rows.largest:g}, {engine.rows.mean:g})"
    if labels is not None:
        scores = {"engine": logits} | expected
        details["pearson_x100"] = {
            name: 100 * float(np.corrcoef(each[:, 0], labels)[0, 1]) for name, each in scores.items()
        }
        figure += "; Pearson x100 " + ", ".join(f"{name} {x:.2f}" for name, x in details["pearson_x100"].items())
    return passed, figure, details


def _built(place: Place, step: Step) -> list[EngineFile]:
    """Return the engines of a step that were built. Raises BackendError if none was."""
    engines = [place.kit.engine(name) for name in step.engines]
    built = [engine for engine in engines if place.plan(engine).is_file()]
    if not built:
        raise BackendError(f"not built: {', '.join(step.engines)}")
    return built


def _inputs(names: tuple[str, ...]) -> Callable[[int, int], Mapping[str, np.ndarray]]:
    return lambda batch, sequence: random_inputs(batch, sequence, _VOCABULARY, input_names=names)


def _latency(place: Place, step: Step) -> Outcome[None]:
    """Time the built engines in turn; ratios are relative to the first one."""
    engines = _built(place, step)
    config = TimingConfig(step.shapes, 10, step.iterations, max_seconds=_SECONDS_A_SHAPE)
    with ExitStack() as stack:
        runners = [stack.enter_context(place.machine.open(place.plan(engine), engine.precision)) for engine in engines]
        results = measure(runners, config, _inputs(engines[0].inputs))
    rows = []
    for engine, latencies in zip(engines, results, strict=True):
        work = Work(engine.weights, engine.attention_width) if engine.weights else None
        peak = peak_tops(place.machine.device, engine.precision)
        times = [asdict(rated(latency, work, peak)) for latency in latencies]
        rows.append({"engine": engine.name, "precision": engine.precision, "latencies": times})
    missing = [name for name in step.engines if name not in {engine.name for engine in engines}]
    figure = "; ".join(_shape_figure(engines, results, index) for index in range(len(step.shapes)))
    figure += f"; not built: {', '.join(missing)}" if missing else ""
    return Outcome(figure, None, {"timed": rows, "not_built": missing})


def _shape_figure(engines: list[EngineFile], results: list[list[Latency]], index: int) -> str:
    """Return ``"32x128: bert-base FP16 3.1 ms, bert-base INT8+FP16 1.9 ms (1.63x)"``."""
    first = results[0][index]
    parts = [f"{engines[0].name} {first.median_ms:.3g} ms"]
    for engine, latencies in zip(engines[1:], results[1:], strict=True):
        ms = latencies[index].median_ms
        parts.append(f"{engine.name} {ms:.3g} ms ({first.median_ms / ms:.2f}x)")
    return f"{first.shape}: {', '.join(parts)}"


def _threads(place: Place, step: Step) -> Outcome[None]:
    (engine, *_) = _built(place, step)
    make = _inputs(engine.inputs)
    batches = [make(*shape) for shape in step.shapes for _ in range(4)]
    with place.machine.open(place.plan(engine), engine.precision) as runner:
        return share(runner, batches, _THREADS)


def _loads(place: Place, step: Step) -> Outcome[None]:
    (engine, *_) = _built(place, step)
    batch = _inputs(engine.inputs)(*step.shapes[0])

    def once() -> None:
        with place.machine.open(place.plan(engine), engine.precision) as runner:
            runner.infer(batch)
            runner.infer(batch)

    return repeat(once, place.machine.free_bytes, step.iterations, _GROWTH_MIB)


def _arrays(place: Place, step: Step) -> Outcome[None]:
    """Compare the answers to arrays of torch and CuPy on the GPU, read in place, with those to NumPy's."""
    (engine, *_) = _built(place, step)
    host = _inputs(engine.inputs)(*step.shapes[0])
    makers = {"torch": _torch_arrays, "cupy": _cupy_arrays}
    apart: dict[str, float] = {}
    absent = []
    with place.machine.open(place.plan(engine), engine.precision) as runner:
        expected = runner.infer(host)
        for name, make in makers.items():
            try:
                arrays = make(host, place.machine.torch_device)
            except ImportError:
                absent.append(name)
                continue
            apart[name] = float(np.abs(runner.infer(arrays) - expected).max())
    if not apart:
        raise BackendError(f"not installed: {', '.join(absent)}")
    figure = ", ".join(f"{name}: largest difference {each:.2g}" for name, each in apart.items())
    figure += f"; not installed: {', '.join(absent)}" if absent else ""
    allowed = 1e-3 * (1 + float(np.abs(expected).max()))
    return Outcome(figure, max(apart.values()) <= allowed, {"largest_difference": apart, "not_installed": absent})


def _torch_arrays(host: Mapping[str, np.ndarray], device: str) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array).to(device) for name, array in host.items()}


def _cupy_arrays(host: Mapping[str, np.ndarray], device: str) -> dict[str, Any]:
    import cupy

    return {name: cupy.asarray(array) for name, array in host.items()}


def _buckets(place: Place, step: Step) -> Outcome[None]:
    """Time the rows of the first engine on all engines, in batches padded to buckets and to the longest row."""
    engines = _built(place, step)
    rows, longest = _rows(place, engines[0]), max(profile.max[1] for profile in engines[0].profiles)
    size = min(profile.max[0] for profile in engines[0].profiles)
    with ExitStack() as stack:
        runners = [stack.enter_context(place.machine.open(place.plan(engine), engine.precision)) for engine in engines]
        lengths = measure_lengths(runners, rows, 0, longest, size, max_seconds=_SECONDS_A_SHAPE)
    figure = "; ".join(
        f"{engine.name} {each.bucket_samples_per_s:,.0f} rows/s, {each.fixed_samples_per_s:,.0f} at {longest} tokens "
        f"({each.ratio:.2f}x)"
        for engine, each in zip(engines, lengths, strict=True)
    )
    details = {engine.name: asdict(each) for engine, each in zip(engines, lengths, strict=True)}
    return Outcome(f"{lengths[0].mean_tokens:.1f} tokens a row: {figure}", None, {"buckets": details})


def _rows(place: Place, engine: EngineFile) -> Features:
    """Return the rows of an engine without their padding."""
    if engine.rows is None:
        raise BackendError(f"{engine.name} has no rows")
    rows: dict[str, list[list[int]]] = {name: [] for name in engine.inputs}
    with np.load(place.folder / engine.rows.file) as arrays:
        for number in range(sum(name.startswith("attention_mask.") for name in arrays)):
            lengths = arrays[f"attention_mask.{number}"].sum(axis=1)
            for name, values in rows.items():
                padded = arrays[f"{name}.{number}"].tolist()
                values += [row[:length] for row, length in zip(padded, lengths, strict=True)]
    return Features(
        task=get_task("STS-B"), split="dev", source=engine.rows.file, labels=None,
        input_ids=rows["input_ids"], token_type_ids=rows.get("token_type_ids"),
    )  # fmt: skip


def _torch(place: Place, step: Step) -> Outcome[None]:
    """Time torch in FP16 with scaled_dot_product_attention, launched from a CUDA graph, the alternative to TensorRT."""
    from q8trt.gpu_check.prepared.torch_reference import time_torch

    engine = place.kit.engine(step.engines[0])
    return time_torch(engine, step.shapes, step.iterations, _inputs(engine.inputs), place.machine.torch_device)
