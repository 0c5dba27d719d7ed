"""Quantization of a fine-tuned model to engines and a report: the steps of `q8trt quantize`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from q8trt.console.commands import command as command_line
from q8trt.console.progress import phases
from q8trt.deployment.engine_folder import build_engine, check_engine_output, default_folder, may_lack_plan
from q8trt.deployment.plan import EnginePlan, plan_of_run
from q8trt.deployment.source import find_source
from q8trt.engine.backend import find_backend
from q8trt.engine.config import BuildConfig
from q8trt.engine.folder import find_engines
from q8trt.engine.manifest_file import load_manifest
from q8trt.engine.shapes import ShapeOptions, check_positions
from q8trt.errors import ConfigError, EngineError, InterruptedRunError, Q8TRTError
from q8trt.evaluation.benchmark import benchmark_engines
from q8trt.evaluation.config import BenchmarkConfig
from q8trt.evaluation.data import data_config
from q8trt.hardware.provenance import provenance
from q8trt.models import load_config, positions
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.reporting.report import check_files, write_report
from q8trt.runs.config import config_of_run, last_stage
from q8trt.runs.quantize_config import QuantizeConfig, check_paths
from q8trt.runs.run import RUN_FILE, STAGES
from q8trt.runtime.timing.config import TimingConfig
from q8trt.tasks.data import load_dev, load_train
from q8trt.training.execution import execute
from q8trt.training.quantizing import quantization_of

if TYPE_CHECKING:
    from q8trt.reporting import Report
    from q8trt.runs.config import FinetuneConfig
    from q8trt.runs.run import Run

#: Shapes and iterations of the report: enough for a ratio in seconds on a CPU. benchmark.py times more.
_TIMING = TimingConfig(shapes=((1, 32), (8, 64)), warmup=2, iterations=10, max_seconds=30.0)


@dataclass(frozen=True)
class QuantizedModel:
    """The result of quantizing a model.

    Attributes:
        run: the run, an argument of benchmark, parity and build_engine.
        engines: the engine folders, the INT8 engine last; () if none was built.
        report: scores or drift from FP32, and latencies of the engines; None if none was built.
    """

    run: Run
    engines: tuple[Path, ...] = ()
    report: Report | None = None

    def __fspath__(self) -> str:
        return str(self.run.path)


def quantize_model(
    model: str | Path,
    config: QuantizeConfig,
    say: Callable[[str], object],
    command: Sequence[str],
    output_dir: str | Path | None = None,
    runs_dir: str | Path = "",
    build: BuildConfig | None = None,
    shapes: ShapeOptions | None = None,
    baseline: bool = True,
) -> QuantizedModel:
    """Calibrate `model`, train it with quantizers if `config` says so, build its engines, and compare them.

    Args:
        model: a folder of Hugging Face or sentence-transformers, a hub name, or a short name such as "minilm".
        config: rows and options of the calibration.
        say: function that prints one line of progress.
        command: words of the command line, for the record.
        output_dir: folder of the run; None for a new folder in `runs_dir`.
        runs_dir: folder of the runs.
        build: options of the builder; None builds no engine.
        shapes: options of the profiles; None for the defaults.
        baseline: whether to build the engines to compare with, too.

    Raises:
        Q8TRTError: the input is bad, or no backend builds engines. Both are checked before a run is made.
    """
    check_paths(model, config)
    if build is not None:
        _check_backend(config.calibration.target, build)
        if output_dir is not None:
            _check_room(Path(output_dir))
    chosen = quantization_of(model, config, say)
    if config.texts is None:
        say("texts: the built-in sentences; your own texts calibrate better: --texts FILE")
    if config.validation_file is None:
        say("no rows with labels: answers are compared with those of the FP32 model")
    if build is not None:  # checked before calibration, which may take minutes
        build = replace(build, profiles=(shapes or ShapeOptions()).profiles(chosen.data.max_seq_length))
        check_positions(build.profiles, positions(load_config(chosen.model_name_or_path)))
    plan = EnginePlan(build, baseline)
    run = execute(chosen, say, command, output_dir, runs_dir, engines=plan.to_dict())
    return _with_engines(run, chosen, plan, say, command)


def resume_quantization(run: Run, say: Callable[[str], object], command: Sequence[str]) -> QuantizedModel:
    """Finish a run of `quantize_model`: the unfinished stages, the missing engines, and the report.

    Args:
        run: the run.
        say: function that prints one line of progress.
        command: words of the command line, for the record of the report.

    Raises:
        ConfigError: run.json is damaged, or the run is not one of `q8trt quantize`.
        Q8TRTError: the rows or the model changed, or no backend builds engines.
    """
    config = config_of_run(run, "restore them to continue this run, or start a new one")
    plan = plan_of_run(run, config)
    if plan.build is not None:
        _check_backend(config.target, plan.build)
    if run.stage(last_stage(config)) is None:
        execute(config, say, command, unfinished=run)
    else:
        say(f"run: {run.path}, whose stages are finished")
        load_train(config.data), load_dev(config.data)  # rows that changed are refused before engines are built
    return _with_engines(run, config, plan, say, command)


def _with_engines(
    run: Run, config: FinetuneConfig, plan: EnginePlan, say: Callable[[str], object], command: Sequence[str]
) -> QuantizedModel:
    """Build the missing engines of a plan, and compare all engines."""
    if plan.build is None:
        return QuantizedModel(run)
    target = config.target
    try:
        precisions = (*(target.baselines if plan.baseline else ()), target.int8)
        folders = [_built(run, precision, plan.build) for precision in precisions]
        for folder in folders:
            say(f"engine: {folder}")
        engines = find_engines(folders, "")
        length = config.data.max_seq_length
        timing = replace(_TIMING, shapes=tuple((batch, min(tokens, length)) for batch, tokens in _TIMING.shapes))
        measured = BenchmarkConfig(layer_times=False, timing=timing)
        report = benchmark_engines(engines, data_config(engines, None), measured, provenance(list(command)))
        write_report(run.path, report, "benchmark")
    except KeyboardInterrupt as interrupt:
        raise InterruptedRunError(
            f"stopped before the engines and the report were complete; continue with: {run.resume_command}"
        ) from interrupt
    except Q8TRTError:
        say(f"the stages are finished, but not the engines or the report; continue with: {run.resume_command}")
        raise
    return QuantizedModel(run, tuple(folders), report)


def _check_backend(target: Target, build: BuildConfig) -> None:
    """Check that a backend that builds plans is installed, unless the engine needs none."""
    if not may_lack_plan(target, build):
        find_backend(build.backend)


def _check_room(folder: Path) -> None:
    """Check that the engines and the report replace nothing in the folder of the run."""
    check_files(folder / "benchmark")
    if engine := next(folder.glob("engine*"), None):
        raise ConfigError(
            f"--output_dir {folder} contains {engine.name!r} already, which an engine might replace; give a new folder"
        )


def _built(run: Run, precision: Precision, config: BuildConfig) -> Path:
    """Return the folder of an engine of the run, and build the engine if it is missing or damaged."""
    source = find_source(precision, str(run.path), "")
    folder = default_folder(source)
    with contextlib.suppress(EngineError):
        if folder.is_dir() and load_manifest(folder):
            return folder
    with phases(f"Building {precision}") as on_progress:
        return build_engine(source, config, None, on_progress)[0]


def run_of_folder(
    checkpoint: str | None,
    precision: Precision | None,
    runs_dir: str,
    say: Callable[[str], object],
    command: Sequence[str],
    output_dir: str | Path | None = None,
    overwrite: bool = False,
) -> str | None:
    """Return `checkpoint` or, for the folder of a float model outside a run, the path of a new run with the model.

    Args:
        checkpoint: a run, a checkpoint in a run, or the folder of a model; None for the newest run.
        precision: precision of the engine; None for INT8.
        runs_dir: folder in which the new run is made.
        say: function that prints one line of progress.
        command: words of the command line, for the record.
        output_dir: the engine folder; None for the default in the run.
        overwrite: whether an older engine in `output_dir` may be replaced.

    Raises:
        ConfigError: `precision` is INT8, but the model is not quantized; or the engine folder may not be written.
        CheckpointError: the model cannot be read, or its head is not supported.
    """
    path = Path(checkpoint) if checkpoint else None
    if path is None or not (path / "config.json").is_file() or (path / RUN_FILE).is_file():
        return checkpoint
    if path.name in STAGES and (path.parent / RUN_FILE).is_file():
        return checkpoint
    if precision is None or precision.is_quantized:
        raise ConfigError(
            f"{path} is a model in floating point; quantize it: {command_line('quantize', path)}; or give --fp16 or --fp32"
        )
    if output_dir is not None:
        check_engine_output(output_dir, path, overwrite)
    config = replace(quantization_of(path, QuantizeConfig(), say), precision=Precision.FP32)
    return str(execute(config, say, command, None, runs_dir).path)
