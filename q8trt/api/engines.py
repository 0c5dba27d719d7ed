"""Functions that build, measure, compare and use engines, and that lint ONNX files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.api.session import AnyPath, session, silent, words_of
from q8trt.console.keywords import check_known, take
from q8trt.console.options import from_values
from q8trt.console.progress import Display, phases
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import Shape, ShapeOptions, parse_shapes
from q8trt.evaluation.config import BenchmarkConfig, ParityConfig
from q8trt.export.options import ExportOptions
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.runs.run import RUNS_DIR, Run
from q8trt.tasks.data import DataConfig

if TYPE_CHECKING:
    from q8trt.engine.folder import EngineFolder
    from q8trt.inference import Engine
    from q8trt.inference.files import JobProgress, ScoringConfig, Summary
    from q8trt.lint import LintReport
    from q8trt.reporting import Report
    from q8trt.reporting.parity import EngineParity


def build_engine(
    run: Run | AnyPath | None = None,
    precision: Precision | str | None = None,
    *,
    target: Target | str | None = None,
    stage: str | None = None,
    build: BuildConfig | None = None,
    shapes: ShapeOptions | None = None,
    export: ExportOptions | None = None,
    output_dir: AnyPath | None = None,
    overwrite: bool = False,
    verify_deterministic: bool = False,
    runs_dir: AnyPath = RUNS_DIR,
    progress: bool | Display = False,
    **options: Any,
) -> Path:
    """Export a run's checkpoint to ONNX with Q/DQ and build its TensorRT engine.

    Args:
        run: the run, its folder, its name in `runs_dir`, or a checkpoint folder in it; default: the newest run with a
            checkpoint for `precision`. At "fp16" or "fp32" also the folder of a fine-tuned model, for which a run is made.
        precision: "fp32", "fp16", "int8" (FP32 elsewhere) or "int8+fp16"; default: the target's INT8 precision.
        target: "gpu" or "cpu", for the defaults of `precision` and `fuse_qkv`; default: the run's.
        stage: checkpoint of the run: "fp32", "ptq" or "int8"; default: the best that fits.
        build: the options of the builder, instead of keywords.
        shapes: the options of the profiles, instead of keywords.
        export: the options of the export, instead of keywords.
        output_dir: the engine folder; default: `engine`, or `engine-<stage and precision>`, in the run.
        overwrite: replace an engine in `output_dir`; the default folder is replaced without this argument.
        verify_deterministic: build twice, and record in the manifest whether the plans are the same.
        **options: fields of `ShapeOptions`, `ExportOptions` and `BuildConfig`: buckets, fuse_qkv, backend, sm ...

    Returns:
        the engine folder.
    """
    with session(progress):
        from q8trt.deployment.engine_folder import build_engine
        from q8trt.deployment.quantizing import run_of_folder
        from q8trt.deployment.source import find_source

        words = words_of((), "build_engine", options)
        check_known(options, ShapeOptions, ExportOptions, BuildConfig)
        shapes, export = take(ShapeOptions, shapes, options), take(ExportOptions, export, options)
        config = take(BuildConfig, build, options) or BuildConfig()
        precision = None if precision is None else Precision.parse(precision)
        target = None if target is None else Target.parse(target)
        path = _run_path(run, runs_dir)
        checkpoint = run_of_folder(path, precision, os.fspath(runs_dir), silent, words, output_dir, overwrite)
        source = find_source(precision, checkpoint, os.fspath(runs_dir), stage, target)
        if shapes or build is None:
            config = replace(config, profiles=(shapes or ShapeOptions()).profiles(source.config.data.max_seq_length))
        with phases(f"Building {source.precision}") as on_progress:
            return build_engine(source, config, output_dir, on_progress, verify_deterministic, export, overwrite)[0]


def _run_path(run: Run | AnyPath | None, runs_dir: AnyPath) -> str | None:
    """Return the path of a run or checkpoint, or of the run in `runs_dir` with this name; None for None."""
    if run is None:
        return None
    path = Path(os.fspath(run))
    return str(path if path.exists() or not (named := Path(runs_dir) / path).is_dir() else named)


def benchmark(
    *engines: EngineFolder | AnyPath,
    config: BenchmarkConfig | None = None,
    data: DataConfig | None = None,
    output_dir: AnyPath | None = None,
    name: str = "benchmark",
    runs_dir: AnyPath = RUNS_DIR,
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
    with session(progress):
        from q8trt.engine.folder import find_engines
        from q8trt.evaluation.benchmark import benchmark_engines
        from q8trt.evaluation.data import data_config
        from q8trt.hardware.provenance import provenance
        from q8trt.reporting.report import check_files, write_report

        origin = provenance(words_of(command, "benchmark", options))
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
    *engines: EngineFolder | AnyPath,
    config: ParityConfig | None = None,
    data: DataConfig | None = None,
    runs_dir: AnyPath = RUNS_DIR,
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
    with session(progress):
        from q8trt.engine.folder import find_engines
        from q8trt.evaluation.data import data_config
        from q8trt.evaluation.parity import check_parity

        check_known(options, ParityConfig, DataConfig)
        chosen, rows = take(ParityConfig, config, options) or ParityConfig(), take(DataConfig, data, options)
        folders = find_engines(engines, runs_dir)
        rows = data_config(folders, rows, chosen.max_eval_samples)
        return [check_parity(each, rows, chosen) for each in folders]


def predict(
    engine: Engine | AnyPath,
    input: AnyPath | None = None,
    output: AnyPath | None = None,
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
    with session(False), contextlib.ExitStack() as stack:
        from q8trt.inference import Engine
        from q8trt.inference.files import ScoringConfig, score_file

        options |= {name: Path(path) for name, path in (("input", input), ("output", output)) if path is not None}
        check_known(options, ScoringConfig)
        config = take(ScoringConfig, config, options) or from_values(ScoringConfig, {})
        if not isinstance(engine, Engine):
            engine = stack.enter_context(Engine.load(engine, device, buckets=buckets, batch_size=batch_size))
        return score_file(engine, config, on_progress)


def lint_model(path: AnyPath, max_shapes: Shape | str | None = None) -> LintReport:
    """Forecast what TensorRT does with an ONNX graph.

    Args:
        path: an ONNX file or an engine folder.
        max_shapes: largest (batch, sequence) of the profile; default: an engine folder's own.

    Returns:
        the report: `findings`, `forecast`, `blocks`.
    """
    with session(False):
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
