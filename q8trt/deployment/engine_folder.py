"""A checkpoint to an engine folder: ONNX file, plan, tokenizer, manifest. Whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.engine.build_process import build_plan
from q8trt.engine.config import BuildConfig, PlanInfo, Progress
from q8trt.engine.determinism import PlanDifference, compare_plans
from q8trt.engine.folder import ENGINE_FOLDER
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, BackendInfo, Manifest, ModelInfo, TaskInfo, write_manifest
from q8trt.engine.shapes import ShapeProfile, bucket_profiles, check_positions, largest
from q8trt.errors import CheckpointError, ConfigError, Q8TRTError
from q8trt.export.options import ExportOptions
from q8trt.models import checkpoints, model_inputs, positions
from q8trt.models.activation import activation_of
from q8trt.quantization.precision import Precision
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.runs.run import RUN_FILE, STAGES, Run, check_outside_checkpoints, open_run
from q8trt.runs.search import how_to_finish, newest_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from q8trt.export.onnx import ExportedModel
    from q8trt.quantization.recipe import Recipe
    from q8trt.tasks.glue import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What to build from.

    Attributes:
        checkpoint: the model folder.
        run: the run that it belongs to.
        config: the run's configuration.
        stage: "fp32", "ptq" or "int8".
    """

    checkpoint: Path
    run: Run
    config: FinetuneConfig
    stage: str

    @property
    def task(self) -> Task:
        """The task that the checkpoint was trained for."""
        return self.config.data.resolved_task


def default_folder(source: Source, precision: Precision) -> Path:
    """Return the engine folder in the run: `engine` for QAT, else `engine-<stage>`; with FP16 one of its own."""
    if not precision.is_half:
        return source.run.path / ("engine" if source.stage == "int8" else f"engine-{source.stage}")
    return source.run.path / ("engine-fp16" if source.stage == "fp32" else f"engine-{source.stage}-fp16")


def find_source(precision: Precision, checkpoint: str | None, runs_dir: str, stage: str | None = None) -> Source:
    """The checkpoint to build from: the one given, or the newest run's that fits `precision`.

    Args:
        precision: of the engine.
        checkpoint: a run folder, or a checkpoint folder inside a run; None for the newest run.
        runs_dir: the folder of runs.
        stage: take this stage's checkpoint, "fp32", "ptq" or "int8"; None for the best that fits.

    Raises:
        ConfigError: there is no run, or none that fits; or the stage does not fit the precision.
        CheckpointError: there is no such folder.
    """
    stages = ("int8", "ptq") if precision.is_quantized else ("fp32",)
    path = Path(checkpoint) if checkpoint else None
    if path and not path.is_dir():
        raise CheckpointError(f"{path} does not exist; expected a run folder or a checkpoint folder inside one")
    if path and path.name in STAGES and not (path / RUN_FILE).is_file():
        path, stage = path.parent, path.name
    if stage:
        if stage not in stages:
            raise ConfigError(f"the {stage} checkpoint cannot make an engine of precision {precision}; use {stages[0]}")
        stages = (stage,)
    run = open_run(path) if path else newest_run(runs_dir, stages)
    for name in stages:
        folder = run.checkpoint(name)
        if folder:
            return Source(folder, run, config_of_run(run), name)
    raise ConfigError(f"{run.path} has no finished {' or '.join(stages)} checkpoint; {how_to_finish(run, stages)}")


def profiles_for(
    source: Source, buckets: Sequence[int] = (), opt_batch: int | None = None, max_batch: int | None = None
) -> tuple[ShapeProfile, ...]:
    """The profiles of a plan: one for each bucket, by default a single one as long as the model was trained.

    Args:
        source: the checkpoint.
        buckets: the longest sequence of each profile, in tokens, ascending.
        opt_batch: the batch to tune for; default 16, or `max_batch` where that is smaller.
        max_batch: the largest batch; default 32, or `opt_batch` where that is larger.

    Raises:
        ConfigError: the buckets do not ascend, or the batches are not 1 <= opt <= max.
    """
    most = max(32, opt_batch or 1) if max_batch is None else max_batch
    best = min(16, most) if opt_batch is None else opt_batch
    return bucket_profiles(tuple(buckets) or (source.config.data.max_seq_length,), best, most)


def _load(source: Source) -> tuple[PreTrainedModel, Recipe | None]:
    if source.stage == "fp32":
        return checkpoints.load_finetuned(source.checkpoint, source.task), None
    model, recipe = checkpoints.load_quantized(source.checkpoint)
    if checkpoints.check_head(model.config, source.task, str(source.checkpoint)) is not None:
        raise CheckpointError(
            f"{source.checkpoint} has the labels in another order than its run ({', '.join(source.task.labels)}); "
            "calibrate again from the FP32 checkpoint"
        )
    return model, recipe


def _scores(source: Source) -> dict[str, Any]:
    """The torch scores that the run noted: of the FP32 model and of the one being built."""
    entries = {stage: source.run.stage(stage) for stage in {"fp32", source.stage}}
    return {f"torch_{stage}": entry.scores for stage, entry in sorted(entries.items()) if entry}


def _manifest(
    source: Source, model: PreTrainedModel, recipe: Recipe | None, precision: Precision, inputs: tuple[str, ...],
    tokenizer: Any, profiles: Sequence[ShapeProfile], plan: PlanInfo, report: dict[str, Any],
) -> Manifest:  # fmt: skip
    from q8trt.export.trace import OPSET

    task, config = source.task, model.config
    columns = source.config.data.columns or task.text_columns
    return Manifest(
        task=TaskInfo(
            task.name,
            list(task.labels),
            task.is_regression,
            task.is_pair,
            task.main_metric,
            text_columns=list(columns),
            activation=activation_of(config, task, str(source.checkpoint)),
        ),
        model=ModelInfo(
            name=checkpoints.short_name(source.config.from_fp32 or source.config.model_name_or_path),
            model_type=config.model_type,
            num_labels=int(config.num_labels or 0),
            max_position_embeddings=positions(config),
            pad_token_id=tokenizer.pad_token_id,
            max_seq_length=source.config.data.max_seq_length,
        ),
        precision=precision,
        recipe=recipe.to_dict() if recipe else None,
        inputs=list(inputs),
        opset=OPSET,
        stage=source.stage,
        profiles=list(profiles),
        backend=BackendInfo(plan.backend, plan.version, plan.sm_targets),
        metrics=_scores(source),
        report=report,
    )


def _report(
    exported: ExportedModel, plan: PlanInfo, config: BuildConfig, again: PlanDifference | None, is_sample: bool
) -> dict[str, Any]:
    """What is known of the engine before it runs: the linter's forecast beside what was built."""
    from q8trt.lint import LintConfig, lint

    build = {
        "seconds": round(plan.seconds, 3),
        "peak_memory_mib": plan.peak_memory_mib and round(plan.peak_memory_mib, 1),
        "timing_cache": plan.timing_cache,
        "options": {name: value for name, value in asdict(config).items() if name not in ("backend", "profiles")},
        "built_twice": again and {"identical": again.identical, "difference": str(again), **asdict(again)},
    }
    linted = lint(exported.path, LintConfig(max_shapes=largest(config.profiles)))
    return {
        "is_sample": is_sample,
        "export": {"passes": [asdict(each) for each in exported.passes],
                   "kept_fp32": [asdict(each) for each in exported.kept_fp32]},
        "forecast": asdict(linted.forecast),
        "findings": len(linted.findings),
        "engine": asdict(plan.report),
        "build": build,
    }  # fmt: skip


def build_engine(
    source: Source,
    precision: Precision,
    config: BuildConfig,
    output_dir: str | Path | None = None,
    on_progress: Progress | None = None,
    verify_deterministic: bool = False,
    options: ExportOptions | None = None,
    overwrite: bool = False,
) -> tuple[Path, Manifest]:
    """Export `source` and build its plan. With FP16, training rows say what would overflow.

    Args:
        source: the checkpoint.
        precision: of the engine.
        config: backend, profiles, timing cache.
        output_dir: the engine folder; None for the run's default.
        on_progress: called with (phase, step, steps) while the plan is built.
        verify_deterministic: build the plan a second time, and note in the manifest whether the two are the same.
        options: how the graph is exported.
        overwrite: replace an older engine in `output_dir`; the run's default is replaced in any case.

    Returns:
        the engine folder and its manifest.

    Raises:
        ConfigError: shapes beyond the position table, a precision that does not fit the checkpoint, an option that the
            backend lacks, or an output folder that is not to be replaced.
        BusyError: another process writes the engine folder.
        CheckpointError: the checkpoint is damaged.
        BackendError: no backend is installed.
        EngineError: the backend refused the graph, or crashed.
    """
    from q8trt.engine.backend import find_backend
    from q8trt.export.onnx import export_onnx

    config.check_supported(find_backend(config.backend))  # before the minutes that loading and exporting may take
    check_positions(config.profiles, positions(checkpoints.load_config(str(source.checkpoint))))
    folder = Path(output_dir) if output_dir else default_folder(source, precision)
    target = check_output(source, precision, output_dir, overwrite)
    with files.exclusive(target):
        source.run.sweep()
        model, recipe = _load(source)
        tokenizer = checkpoints.load_tokenizer(str(source.checkpoint))
        with files.atomic_folder(target) as temporary:
            batches, rows = overflow_batches(source, tokenizer) if precision.is_half else ([], "")
            exported = export_onnx(model, temporary / ONNX_FILE, precision, model_inputs(tokenizer), options, batches)
            plan = build_plan(exported.path, temporary / PLAN_FILE, config, on_progress)
            again = _build_again(temporary, config, on_progress) if verify_deterministic else None
            report = _report(exported, plan, config, again, source.config.data.sample)
            report["export"] |= {"overflow_rows": rows, "options": asdict(options or ExportOptions())}
            tokenizer.save_pretrained(temporary)
            inputs, profiles = exported.input_names, config.profiles
            manifest = _manifest(source, model, recipe, precision, inputs, tokenizer, profiles, plan, report)
            manifest = write_manifest(temporary, manifest)
            check_output(source, precision, output_dir, overwrite)  # a file that was put there meanwhile stays
    return folder, manifest


def check_output(source: Source, precision: Precision, output_dir: str | Path | None, overwrite: bool = False) -> Path:
    """Return where the engine folder is written, links resolved.

    Raises:
        ConfigError: what is there is not to be replaced, or the folder cannot be written.
    """
    default = default_folder(source, precision)
    if output_dir is None or Path(output_dir).resolve() == default.resolve():
        hint = "move that away, or build elsewhere with --output_dir"
        return files.replaceable_folder(default, ENGINE_FOLDER, overwrite=True, option="the engine folder", hint=hint)
    check_outside_checkpoints(output_dir)
    return files.replaceable_folder(output_dir, ENGINE_FOLDER, overwrite=overwrite)


#: Rows that FP16's range is tried on: a few seconds, and outliers of BERT show on any text.
OVERFLOW_ROWS = 64


def overflow_batches(source: Source, tokenizer: Any) -> tuple[list[dict[str, Any]], str]:
    """Training rows of the run's task, as (batch, sequence) int32 arrays by name, and what they are, for the manifest.

    Where the data are not at hand, the built-in sentence pairs stand in: what overflows depends on the model more than on
    the text.
    """
    from q8trt.tasks.data import DataConfig, bucketed_batches, load_train, tokenize

    config = source.config.data
    try:
        examples = load_train(config).take(OVERFLOW_ROWS)
        text = f"{len(examples)} " + (
            "built-in sentence pairs" if config.sample else f"training rows of {source.task.name}"
        )
    except Q8TRTError as error:
        _log.warning("the training rows are not at hand (%s): FP16's range is tried on built-in sentences", error)
        examples = load_train(DataConfig("STS-B", sample=True, max_train_samples=OVERFLOW_ROWS))
        text = f"{len(examples)} built-in sentence pairs, because the training rows are missing"
    features = tokenize(examples, tokenizer, config.max_seq_length)
    names = model_inputs(tokenizer)
    batches = bucketed_batches(features, 16, tokenizer.pad_token_id)
    return [{name: batch.arrays[name].astype("int32") for name in names} for batch in batches], text


def _build_again(folder: Path, config: BuildConfig, on_progress: Progress | None) -> PlanDifference:
    """Build the plan of `folder` a second time, in another process, and compare the two."""
    second = folder / f".{PLAN_FILE}.again"
    try:
        build_plan(folder / ONNX_FILE, second, config, on_progress)
        return compare_plans(folder / PLAN_FILE, second)
    finally:
        second.unlink(missing_ok=True)
