"""Functions that make runs: fine-tuning, calibration, the cost of each site, and all steps for your own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from q8trt.api.session import AnyPath, Messages, session, silent, words_of
from q8trt.console.keywords import check_known, take
from q8trt.console.options import from_values
from q8trt.console.progress import Display
from q8trt.engine.config import BuildConfig
from q8trt.engine.shapes import ShapeOptions
from q8trt.errors import ConfigError
from q8trt.evaluation.config import SensitivityConfig
from q8trt.hardware.packages import check_installed
from q8trt.runs.config import CalibrationConfig, FinetuneConfig, config_of_run
from q8trt.runs.quantize_config import QuantizeConfig
from q8trt.runs.run import RUNS_DIR, Run
from q8trt.tasks.data import DataConfig

if TYPE_CHECKING:
    from q8trt.deployment.quantizing import QuantizedModel
    from q8trt.evaluation.sensitivity.analysis import Analysis


def finetune(
    config: FinetuneConfig | None = None,
    *,
    output_dir: AnyPath | None = None,
    runs_dir: AnyPath = RUNS_DIR,
    resume: Run | AnyPath | None = None,
    progress: bool | Display = False,
    on_message: Messages | None = None,
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
    with session(progress):
        from q8trt.runs.settings import with_settings
        from q8trt.training.execution import execute, unfinished_run

        say, words = on_message or silent, words_of(command, "finetune", options)
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
        stored = config_of_run(run, "restore them to continue this run, or start a new one")
        return execute(stored, say, words, unfinished=run)


def calibrate(
    model_name_or_path: AnyPath | None = None,
    *,
    config: CalibrationConfig | None = None,
    data: DataConfig | None = None,
    output_dir: AnyPath | None = None,
    runs_dir: AnyPath = RUNS_DIR,
    progress: bool | Display = False,
    on_message: Messages | None = None,
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
    with session(progress):
        from q8trt.training.execution import calibration_of, execute

        say, words = on_message or silent, words_of(command, "calibrate", options)
        check_known(options, CalibrationConfig, DataConfig)
        how, rows = take(CalibrationConfig, config, options) or CalibrationConfig(), take(DataConfig, data, options)
        chosen = calibration_of(model_name_or_path, how, rows, runs_dir, say)
        return execute(chosen, say, words, output_dir, runs_dir, prefix="ptq-")


def sensitivity(
    model_name_or_path: AnyPath | None = None,
    *,
    config: SensitivityConfig | None = None,
    calibration: CalibrationConfig | None = None,
    data: DataConfig | None = None,
    output_dir: AnyPath | None = None,
    runs_dir: AnyPath = RUNS_DIR,
    progress: bool | Display = False,
    on_message: Messages | None = None,
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
        the costs, their files, and the placement that keeps the bound (None without `max_drop`).
    """
    with session(progress):
        say, words = on_message or silent, words_of(command, "sensitivity", options)
        check_known(options, SensitivityConfig, CalibrationConfig, DataConfig)
        bound = take(SensitivityConfig, config, options) or SensitivityConfig()
        how = take(CalibrationConfig, calibration, options) or CalibrationConfig()
        rows = take(DataConfig, data, options)
        if how.from_pytorch_quantization:
            raise ConfigError("--sensitivity and --from_pytorch_quantization exclude each other; give one")
        import matplotlib  # noqa: F401 - raises before the work if it is missing

        from q8trt.evaluation.sensitivity.analysis import analyze
        from q8trt.training.execution import calibration_of

        chosen = calibration_of(model_name_or_path, how, rows, runs_dir, say, recipe_of_run=True)
        return analyze(chosen, bound, output_dir, runs_dir, words, say)


def quantize(
    model_name_or_path: AnyPath | None = None,
    *,
    config: QuantizeConfig | None = None,
    build: BuildConfig | None = None,
    shapes: ShapeOptions | None = None,
    build_engines: bool = True,
    baseline: bool = True,
    output_dir: AnyPath | None = None,
    runs_dir: AnyPath = RUNS_DIR,
    resume: Run | AnyPath | None = None,
    progress: bool | Display = False,
    on_message: Messages | None = None,
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
        baseline: False builds only the INT8 engine.
        output_dir: folder of the new run; default: one in `runs_dir`.
        resume: the unfinished run of this function to continue with its own options; "newest" for the newest one.
        **options: fields of `QuantizeConfig`, `ShapeOptions` and `BuildConfig`: texts, validation_file, distill, target ...

    Returns:
        the run, its engine folders and the report. The object is also a path of the run (`os.PathLike`).
    """
    with session(progress):
        check_installed("torch")  # before a missing TensorRT is reported, which is needed later
        from q8trt.deployment.quantizing import quantize_model, resume_quantization
        from q8trt.training.execution import unfinished_run

        say, words = on_message or silent, words_of(command, "quantize", options)
        if resume is not None:
            if model_name_or_path or config or build or shapes or options or output_dir:
                raise ConfigError("resume continues a run with its own options; leave all other options out")
            return resume_quantization(unfinished_run(resume, runs_dir, of_quantize=True), say, words)
        if model_name_or_path is None:
            raise ConfigError("model_name_or_path is missing; give a folder, a hub name or minilm, or resume=RUN")
        check_known(options, QuantizeConfig, ShapeOptions, BuildConfig)
        chosen = take(QuantizeConfig, config, options) or QuantizeConfig()
        profiles, builder = take(ShapeOptions, shapes, options), take(BuildConfig, build, options) or BuildConfig()
        how = builder if build_engines else None
        return quantize_model(model_name_or_path, chosen, say, words, output_dir, runs_dir, how, profiles, baseline)
