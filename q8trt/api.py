"""The Python API: each step from a checkpoint to a measured engine as a function. The commands call these functions.

    run = q8trt.finetune(task="STS-B", model_name_or_path="minilm", data_dir="glue")
    engine_dir = q8trt.build_engine(run)
    report = q8trt.benchmark(engine_dir)
    engine = q8trt.Engine.load(engine_dir)

Keyword arguments have the names of the commands' options. `config` takes the dataclass that holds these options instead. The
functions print nothing. Several functions have these parameters:

    runs_dir: folder for new runs, in which the newest run is also looked up.
    progress: True shows progress bars on stderr if it is a terminal; a function receives (description, done, total).
    on_message: function that receives each message about progress, such as `print`.
    command: words of the command line to record instead of the call.

All functions raise:
    Q8TRTError: an error that the caller can fix, in one line; a `MissingPackageError` has the command that installs it.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.console.keywords import check_known, take
from q8trt.console.options import from_values
from q8trt.console.progress import Display, phases, shown_by
from q8trt.console.quiet import quiet_libraries
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import Shape, ShapeOptions, parse_shapes
from q8trt.errors import ConfigError, MissingPackageError
from q8trt.evaluation.config import BenchmarkConfig, ParityConfig, SensitivityConfig
from q8trt.export.options import ExportOptions
from q8trt.hardware.packages import install_with_extra
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.runs.config import CalibrationConfig, FinetuneConfig, config_of_run
from q8trt.runs.quantize_config import QuantizeConfig
from q8trt.runs.run import RUNS_DIR, Run
from q8trt.tasks.data import DataConfig

if TYPE_CHECKING:
    from q8trt.deployment.quantizing import QuantizedModel
    from q8trt.engine.folder import EngineFolder
    from q8trt.evaluation.sensitivity.analysis import Analysis
    from q8trt.inference import Engine
    from q8trt.inference.files import JobProgress, ScoringConfig, Summary
    from q8trt.lint import LintReport
    from q8trt.reporting import Report
    from q8trt.reporting.parity import EngineParity

_Path = str | Path
_Messages = Callable[[str], object]


@contextlib.contextmanager
def _session(progress: bool | Display) -> Iterator[None]:
    """Show progress, silence library warnings, and turn a missing package into an error that names the command to install it."""
    with warnings.catch_warnings(), shown_by(progress):
        quiet_libraries()
        try:
            yield
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "q8trt":
                raise
            raise MissingPackageError(f"{error.name} is not installed", install_with_extra(error.name)) from error


def _words(command: Sequence[str], name: str, keywords: Mapping[str, Any]) -> list[str]:
    """Return the words of the command line, or of the call, for the record."""
    return list(command) or [f"q8trt.{name}", *(f"{key}={value}" for key, value in keywords.items())]


def _silent(_: str) -> None:
    """Take a message and print nothing."""


def finetune(
    config: FinetuneConfig | None = None,
    *,
    output_dir: _Path | None = None,
    runs_dir: _Path = RUNS_DIR,
    resume: Run | _Path | None = None,
    progress: bool | Display = False,
    on_message: _Messages | None = None,
    command: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Fine-tune in FP32, calibrate, and fine-tune with quantizers (QAT).

    If q8trt has settings for the model and the task, they replace the defaults of the options that are not given.

    Args:
        config: all options of the run, instead of keywords; settings do not apply to it.
        output_dir: folder of the run; default: a new one in `runs_dir`.
        resume: the unfinished run to continue with its own options; "newest" for the newest one.
        **options: fields of `FinetuneConfig`, `TrainingConfig` and `DataConfig`: task, model_name_or_path, recipe ...

    Returns:
        the finished run.
    """
    with _session(progress):
        from q8trt.runs.settings import with_settings
        from q8trt.training.execution import execute, unfinished_run

        say, words = on_message or _silent, _words(command, "finetune", options)
        if resume is None:
            check_known(options, FinetuneConfig)
            keywords = {name for name, value in options.items() if value is not None}
            chosen = take(FinetuneConfig, config, options) or from_values(FinetuneConfig, {})
            if config is None:
                chosen, line = with_settings(chosen, keywords)
                if line:
                    say(line)
            return execute(chosen, say, words, output_dir, runs_dir)
        if config or options or output_dir:
            raise ConfigError("resume continues a run with its own options; leave all other options out")
        run = unfinished_run(resume, runs_dir)
        stored = config_of_run(run, "restore them to go on with this run, or start a new one")
        return execute(stored, say, words, unfinished=run)


def calibrate(
    model_name_or_path: _Path | None = None,
    *,
    config: CalibrationConfig | None = None,
    data: DataConfig | None = None,
    output_dir: _Path | None = None,
    runs_dir: _Path = RUNS_DIR,
    progress: bool | Display = False,
    on_message: _Messages | None = None,
    command: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Quantize a fine-tuned FP32 checkpoint by calibration alone (PTQ).

    Args:
        model_name_or_path: the checkpoint, or the run that holds it; default: the newest run's. The data of that run are
            the default for `data`.
        config: all options of the calibration, instead of keywords.
        data: the rows to calibrate and score on, instead of keywords.
        output_dir: folder of the new run; default: one in `runs_dir`.
        **options: fields of `CalibrationConfig` and `DataConfig`: recipe, calibration_samples, task, data_dir ...

    Returns:
        the new run, with the stages fp32 and ptq.
    """
    with _session(progress):
        from q8trt.training.execution import calibration_of, execute

        say, words = on_message or _silent, _words(command, "calibrate", options)
        check_known(options, CalibrationConfig, DataConfig)
        how, rows = take(CalibrationConfig, config, options) or CalibrationConfig(), take(DataConfig, data, options)
        chosen = calibration_of(model_name_or_path, how, rows, runs_dir, say)
        return execute(chosen, say, words, output_dir, runs_dir, prefix="ptq-")


def sensitivity(
    model_name_or_path: _Path | None = None,
    *,
    config: SensitivityConfig | None = None,
    calibration: CalibrationConfig | None = None,
    data: DataConfig | None = None,
    output_dir: _Path | None = None,
    runs_dir: _Path = RUNS_DIR,
    progress: bool | Display = False,
    on_message: _Messages | None = None,
    command: Sequence[str] = (),
    **options: Any,
) -> Analysis:
    """Measure the cost of quantizing each site alone, and each layer alone, with labels or without.

    After an interruption, the next call reuses the scores. With `max_drop` and `write_recipe`, the function leaves the most
    harmful sites in floating point and writes that recipe.

    Args:
        model_name_or_path: the checkpoint, or the run that holds it; default: the newest run's. The data of that run are
            the default for `data`.
        config: the options of the analysis, instead of keywords.
        calibration: the options of the calibration, instead of keywords; the default recipe is the run's. For a checkpoint
            outside a run it is the target's.
        data: the rows, instead of keywords.
        output_dir: folder of sensitivity.json and sensitivity.png; default: the checkpoint's run.
        **options: fields of `SensitivityConfig`, `CalibrationConfig` and `DataConfig`.

    Returns:
        the costs, the files that hold them, and the placement that keeps the bound.
    """
    with _session(progress):
        say, words = on_message or _silent, _words(command, "sensitivity", options)
        check_known(options, SensitivityConfig, CalibrationConfig, DataConfig)
        bound = take(SensitivityConfig, config, options) or SensitivityConfig()
        how = take(CalibrationConfig, calibration, options) or CalibrationConfig()
        rows = take(DataConfig, data, options)
        if how.from_pytorch_quantization:
            raise ConfigError("--sensitivity and --from_pytorch_quantization exclude each other; give one")
        import matplotlib  # noqa: F401 - so that its absence is noticed before the work, not after it

        from q8trt.evaluation.sensitivity.analysis import analyze
        from q8trt.training.execution import calibration_of

        chosen = calibration_of(model_name_or_path, how, rows, runs_dir, say, recipe_of_run=True)
        return analyze(chosen, bound, output_dir, runs_dir, words, say)


def quantize(
    model_name_or_path: _Path,
    *,
    config: QuantizeConfig | None = None,
    build: BuildConfig | None = None,
    shapes: ShapeOptions | None = None,
    build_engines: bool = True,
    output_dir: _Path | None = None,
    runs_dir: _Path = RUNS_DIR,
    progress: bool | Display = False,
    on_message: _Messages | None = None,
    command: Sequence[str] = (),
    **options: Any,
) -> QuantizedModel:
    """Quantize your own fine-tuned model, with labels or without, and make a run, its engines and a report.

    Args:
        model_name_or_path: a folder of Hugging Face or sentence-transformers, a hub name, or "minilm".
        config: all options of the quantization, instead of keywords.
        build: the options of the builder, instead of keywords.
        shapes: the options of the profiles, instead of keywords.
        build_engines: False stops after the calibrated or trained checkpoint.
        output_dir: folder of the new run; default: one in `runs_dir`.
        **options: fields of `QuantizeConfig`, `ShapeOptions` and `BuildConfig`: texts, validation_file, distill, target ...

    Returns:
        the run, its engine folders and the report. The object is also a path of the run (`os.PathLike`).
    """
    with _session(progress):
        from q8trt.deployment.quantizing import quantize_model

        say, words = on_message or _silent, _words(command, "quantize", options)
        check_known(options, QuantizeConfig, ShapeOptions, BuildConfig)
        chosen = take(QuantizeConfig, config, options) or QuantizeConfig()
        profiles, builder = take(ShapeOptions, shapes, options), take(BuildConfig, build, options) or BuildConfig()
        how = builder if build_engines else None
        return quantize_model(model_name_or_path, chosen, say, words, output_dir, runs_dir, how, profiles)


def build_engine(
    run: Run | _Path | None = None,
    precision: Precision | str | None = None,
    *,
    target: Target | str | None = None,
    stage: str | None = None,
    build: BuildConfig | None = None,
    shapes: ShapeOptions | None = None,
    export: ExportOptions | None = None,
    output_dir: _Path | None = None,
    overwrite: bool = False,
    verify_deterministic: bool = False,
    runs_dir: _Path = RUNS_DIR,
    progress: bool | Display = False,
    **options: Any,
) -> Path:
    """Export a run's checkpoint to ONNX with Q/DQ and build its TensorRT engine.

    Args:
        run: the run, its folder, its name in `runs_dir`, or a checkpoint folder in it; default: the newest run. At "fp16" or
            "fp32" also the folder of a fine-tuned model, for which a run is made.
        precision: "fp32", "fp16", "int8" (FP32 elsewhere) or "int8+fp16"; default: the target's INT8 precision.
        target: "gpu" or "cpu", for the defaults of `precision` and `fuse_qkv`; default: the run's.
        stage: checkpoint of the run: "fp32", "ptq" or "int8"; default: the best that fits.
        build: the options of the builder, instead of keywords.
        shapes: the options of the profiles, instead of keywords.
        export: the options of the export, instead of keywords.
        output_dir: the engine folder; default: `engine`, or `engine-<stage and precision>`, in the run.
        overwrite: replace an engine in `output_dir`; the default folder is replaced without this argument.
        verify_deterministic: build twice, and note in the manifest whether the plans are the same.
        **options: fields of `ShapeOptions`, `ExportOptions` and `BuildConfig`: buckets, fuse_qkv, backend, sm ...

    Returns:
        the engine folder.
    """
    with _session(progress):
        from q8trt.deployment.engine_folder import build_engine
        from q8trt.deployment.quantizing import run_of_folder
        from q8trt.deployment.source import find_source

        words = _words((), "build_engine", options)
        check_known(options, ShapeOptions, ExportOptions, BuildConfig)
        shapes, export = take(ShapeOptions, shapes, options), take(ExportOptions, export, options)
        config = take(BuildConfig, build, options) or BuildConfig()
        precision = None if precision is None else Precision.parse(precision)
        target = None if target is None else Target.parse(target)
        path = _run_path(run, runs_dir)
        checkpoint = run_of_folder(path, precision, os.fspath(runs_dir), _silent, words, output_dir, overwrite)
        source = find_source(precision, checkpoint, os.fspath(runs_dir), stage, target)
        if shapes or build is None:
            config = replace(config, profiles=(shapes or ShapeOptions()).profiles(source.config.data.max_seq_length))
        with phases(f"Building {source.precision}") as on_progress:
            return build_engine(source, config, output_dir, on_progress, verify_deterministic, export, overwrite)[0]


def _run_path(run: Run | _Path | None, runs_dir: _Path) -> str | None:
    """Return the path of a run, of its name, or of a checkpoint."""
    if run is None:
        return None
    path = Path(os.fspath(run))
    return str(path if path.exists() or not (named := Path(runs_dir) / path).is_dir() else named)


def benchmark(
    *engines: EngineFolder | _Path,
    config: BenchmarkConfig | None = None,
    data: DataConfig | None = None,
    output_dir: _Path | None = None,
    name: str = "benchmark",
    runs_dir: _Path = RUNS_DIR,
    progress: bool | Display = False,
    command: Sequence[str] = (),
    **options: Any,
) -> Report:
    """Score engines on the development set and time them side by side.

    Args:
        *engines: engine folders; default: those of the run with the newest engine.
        config: the options of the benchmark, instead of keywords.
        data: the rows to score on, instead of keywords; default: the run's.
        output_dir: folder of the report's JSON, Markdown and HTML files; None writes none.
        name: stem of these files.
        **options: fields of `BenchmarkConfig` and `DataConfig`: backend, shapes, accuracy, task, data_dir ...

    Returns:
        the report: `rows`, `to_markdown()`, `to_html()`.
    """
    with _session(progress):
        from q8trt.engine.folder import find_engines
        from q8trt.evaluation.benchmark import benchmark_engines
        from q8trt.evaluation.data import data_config
        from q8trt.hardware.provenance import provenance
        from q8trt.reporting.report import check_files, write_report

        origin = provenance(_words(command, "benchmark", options))
        check_known(options, BenchmarkConfig, DataConfig)
        chosen = take(BenchmarkConfig, config, options) or BenchmarkConfig()
        rows = take(DataConfig, data, options)
        folders = find_engines(engines, runs_dir)
        if output_dir is not None:
            check_files(Path(output_dir) / name)
        scored = data_config(folders, rows, chosen.max_eval_samples) if chosen.accuracy else None
        report = benchmark_engines(folders, scored, chosen, origin)
        if output_dir is not None:
            check_files(Path(output_dir) / name)
            write_report(output_dir, report, name)
        return report


def parity(
    *engines: EngineFolder | _Path,
    config: ParityConfig | None = None,
    data: DataConfig | None = None,
    runs_dir: _Path = RUNS_DIR,
    progress: bool | Display = False,
    **options: Any,
) -> list[EngineParity]:
    """Compare the stages from the FP32 model to each engine, and name the first layer in which two stages differ.

    Args:
        *engines: engine folders; default: those of the run with the newest engine.
        config: the options of the comparison, instead of keywords.
        data: the rows, instead of keywords; default: the run's.
        **options: fields of `ParityConfig` and `DataConfig`: samples, tolerance, task, data_dir ...

    Returns:
        one result for each engine; `agrees` is True if its stages agree.
    """
    with _session(progress):
        from q8trt.engine.folder import find_engines
        from q8trt.evaluation.data import data_config
        from q8trt.evaluation.parity import check_parity

        check_known(options, ParityConfig, DataConfig)
        chosen, rows = take(ParityConfig, config, options) or ParityConfig(), take(DataConfig, data, options)
        folders = find_engines(engines, runs_dir)
        rows = data_config(folders, rows, chosen.max_eval_samples)
        return [check_parity(each, rows, chosen) for each in folders]


def predict(
    engine: Engine | _Path,
    input: _Path | None = None,
    output: _Path | None = None,
    *,
    config: ScoringConfig | None = None,
    device: str | None = None,
    batch_size: int = 32,
    buckets: Sequence[int] | None = None,
    on_progress: Callable[[JobProgress], None] | None = None,
    **options: Any,
) -> Summary:
    """Score every row of a file, or continue an interrupted job.

    Args:
        engine: an engine folder, or an open `Engine`.
        input: the file: .csv, .tsv, .jsonl or .txt.
        output: the file for the same rows with their answers.
        config: input, output and the other options of the job, instead of keywords.
        device: "cuda" or "cpu", for a folder; default: the GPU if there is one.
        batch_size: maximum rows in a batch, for a folder.
        buckets: lengths that batches are padded to, for a folder.
        on_progress: function that is called after each chunk of rows.
        **options: fields of `ScoringConfig`: text_columns, overwrite ...

    Returns:
        the number of rows scored and rejected, and the files.
    """
    with _session(False), contextlib.ExitStack() as stack:
        from q8trt.inference import Engine
        from q8trt.inference.files import ScoringConfig, score_file

        options |= {name: Path(path) for name, path in (("input", input), ("output", output)) if path is not None}
        check_known(options, ScoringConfig)
        config = take(ScoringConfig, config, options) or from_values(ScoringConfig, {})
        if not isinstance(engine, Engine):
            engine = stack.enter_context(Engine.load(engine, device, buckets=buckets, batch_size=batch_size))
        return score_file(engine, config, on_progress)


def lint_model(path: _Path, max_shapes: Shape | str | None = None) -> LintReport:
    """Forecast what TensorRT does with an ONNX graph.

    Args:
        path: an ONNX file or an engine folder.
        max_shapes: largest (batch, sequence) of the profile; default: an engine folder's own.

    Returns:
        the report: `findings`, `forecast`, `blocks`.
    """
    with _session(False):
        from q8trt.engine.manifest import ONNX_FILE
        from q8trt.engine.manifest_file import load_manifest
        from q8trt.lint import LintConfig, lint

        path = Path(path)
        if isinstance(max_shapes, str):
            max_shapes = parse_shapes(max_shapes)
        if path.is_dir():
            max_shapes = max_shapes or load_manifest(path, verify=False).largest_shape
            path /= ONNX_FILE
        return lint(path, LintConfig(max_shapes=max_shapes))
