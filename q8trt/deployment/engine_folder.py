"""Builds of engine folders from checkpoints: ONNX file, plan, tokenizer and manifest, completely or not at all."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.deployment.source import Source, overflow_batches
from q8trt.engine.build_process import build_plan, started_backend
from q8trt.engine.config import BuildConfig, PhaseCallback, PlanInfo
from q8trt.engine.determinism import PlanDifference, compare_plans
from q8trt.engine.folder import ENGINE_FOLDER
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, BackendInfo, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.engine.rebuild import default_folder_name
from q8trt.engine.record import BuildRecord, EngineRecord, ExportRecord
from q8trt.engine.shapes import check_positions, largest
from q8trt.errors import BackendError, CheckpointError
from q8trt.export.options import ExportOptions
from q8trt.models import check_head, checkpoints, load_config, load_tokenizer, model_inputs, positions
from q8trt.models.activation import activation_of
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.runs.config import model_name
from q8trt.runs.run import check_outside_checkpoints
from q8trt.tasks.heads import HeadKind

if TYPE_CHECKING:
    from q8trt.export.onnx import ExportedModel
    from q8trt.models.checkpoints import Model
    from q8trt.quantization.recipe import Recipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Built:
    """The parts of a build that its manifest describes."""

    precision: Precision
    exported: ExportedModel
    options: ExportOptions
    overflow_rows: str
    config: BuildConfig
    plan: PlanInfo | None
    difference: PlanDifference | None


def load_model(source: Source) -> tuple[Model, Recipe | None]:
    """Return the model of a checkpoint, and its recipe or None. Raises CheckpointError if the checkpoint is damaged."""
    if source.stage == "fp32":
        return checkpoints.load_finetuned(source.checkpoint, source.task), None
    model, recipe = checkpoints.load_quantized(source.checkpoint)
    if check_head(model.config, source.task, str(source.checkpoint)) is not None:
        raise CheckpointError(
            f"{source.checkpoint} has the labels in another order than its run ({', '.join(source.task.labels)}); "
            "calibrate again from the FP32 checkpoint"
        )
    return model, recipe


def _scores(source: Source) -> dict[str, Any]:
    """Return the torch scores in the run of the FP32 checkpoint and of the checkpoint that is built."""
    entries = {stage: source.run.stage(stage) for stage in {"fp32", source.stage}}
    return {f"torch_{stage}": entry.scores for stage, entry in sorted(entries.items()) if entry}


def _manifest(source: Source, model: Model, recipe: Recipe | None, tokenizer: Any, built: _Built) -> Manifest:
    from q8trt.export.trace import OPSET

    task, config, plan = source.task, model.config, built.plan
    return Manifest(
        task=TaskInfo(
            task.name,
            list(task.labels),
            task.head.kind.is_score,
            task.is_pair and not task.embedding,
            task.main_metric,
            text_columns=_text_columns(source),
            activation=activation_of(config, task, str(source.checkpoint)),
        ),
        head=replace(task.head, max_length=source.config.data.max_seq_length),
        model=ModelInfo(
            name=model_name(source.config),
            model_type=config.model_type,
            num_labels=task.num_labels,
            max_position_embeddings=positions(config),
            pad_token_id=tokenizer.pad_token_id,
            max_seq_length=source.config.data.max_seq_length,
        ),
        precision=built.precision,
        recipe=recipe.to_dict() if recipe else None,
        inputs=list(built.exported.input_names),
        opset=OPSET,
        stage=source.stage,
        profiles=list(built.config.profiles),
        backend=BackendInfo(plan.backend, plan.version, plan.sm_targets) if plan else None,
        metrics=_scores(source),
        report=_record(built, source.config.data.sample).to_dict(),
    )


def _text_columns(source: Source) -> list[str]:
    """Return the text columns of the training rows; [] if they are unknown.

    They are also [] for embeddings that were trained on pairs, because an engine embeds single texts, and for a tagger that was
    trained on words.
    """
    data, task = source.config.data, source.task
    if task.head.kind is HeadKind.TOKEN_CLASSIFICATION and data.train_file is not None:
        return []
    columns = list(data.columns or (() if data.is_custom else task.text_columns))
    return [] if task.embedding and len(columns) == 2 else columns


def _record(built: _Built, is_sample: bool) -> EngineRecord:
    """Return the facts that are known before the engine runs, including the linter's forecast for the plan."""
    from q8trt.lint import LintConfig, lint

    linted = lint(built.exported.path, LintConfig(max_shapes=largest(built.config.profiles)))
    return EngineRecord(
        is_sample=is_sample,
        export=ExportRecord(built.exported.passes, built.exported.kept_fp32, built.overflow_rows, built.options),
        forecast=asdict(linted.forecast),
        findings=linted.count("error") + linted.count("warning"),
        in_float=linted.in_float,
        engine=built.plan.report if built.plan else None,
        build=_build_record(built),
    )


def _build_record(built: _Built) -> BuildRecord:
    if built.plan is None:
        return BuildRecord(options=built.config)
    peak = built.plan.peak_memory_mib
    return BuildRecord(
        seconds=round(built.plan.seconds, 3),
        peak_memory_mib=peak and round(peak, 1),
        timing_cache=built.plan.timing_cache,
        options=built.config,
        built_twice=built.difference,
    )


def build_engine(
    source: Source,
    config: BuildConfig,
    output_dir: str | Path | None = None,
    on_progress: PhaseCallback | None = None,
    verify_deterministic: bool = False,
    options: ExportOptions | None = None,
    overwrite: bool = False,
) -> tuple[Path, Manifest]:
    """Export `source`, build its plan, and return the engine folder and its manifest.

    With FP16, training rows decide which operations stay in FP32 because they overflow.

    Args:
        source: the checkpoint and its precision.
        config: options of the builder.
        output_dir: the engine folder; None for the run's default.
        on_progress: function that is called with (phase, step, steps) while the plan is built.
        verify_deterministic: whether to build the plan a second time and record in the manifest if the plans are equal.
        options: options of the export; None for the defaults.
        overwrite: whether an older engine in `output_dir` may be replaced. The run's default is always replaced.

    Raises:
        ConfigError: shapes exceed the position table, an option does not fit the backend, or the output folder may not be
            replaced.
        BusyError: another process writes to the engine folder.
        CheckpointError: the checkpoint is damaged.
        BackendError: no backend is installed, or none starts on this machine. For a CPU, the engine then has no plan instead,
            unless `config.backend` or `verify_deterministic` is set.
        EngineError: the backend refused the graph, or crashed.
    """
    from q8trt.export.onnx import export_onnx

    options, precision = (options or ExportOptions()).for_target(source.target), source.precision
    check_positions(config.profiles, positions(load_config(str(source.checkpoint))))
    config = _with_backend(
        source, config, needs_plan=verify_deterministic
    )  # before the minutes that an export may take
    folder = Path(output_dir) if output_dir else default_folder(source)
    target = check_output(source, output_dir, overwrite)
    with files.exclusive(target):
        source.run.sweep()
        model, recipe = load_model(source)
        tokenizer = load_tokenizer(str(source.checkpoint))
        with files.atomic_folder(target) as temporary:
            batches, rows = overflow_batches(source, tokenizer) if precision.is_half else ([], "")
            exported = export_onnx(model, temporary / ONNX_FILE, precision, model_inputs(tokenizer), options, batches)
            plan = build_plan(exported.path, temporary / PLAN_FILE, config, on_progress) if config.backend else None
            difference = _build_again(temporary, config, on_progress) if verify_deterministic else None
            tokenizer.save_pretrained(temporary)
            built = _Built(precision, exported, options, rows, config, plan, difference)
            manifest = _manifest(source, model, recipe, tokenizer, built)
            manifest = write_manifest(temporary, manifest)
            check_output(source, output_dir, overwrite)  # again, because a user may have put a file there meanwhile
    return folder, manifest


def _with_backend(source: Source, config: BuildConfig, needs_plan: bool) -> BuildConfig:
    """Return `config` with the backend that builds the plan; None if the target is a CPU and no backend can build here."""
    try:
        return replace(config, backend=started_backend(config).name)
    except BackendError as error:
        if needs_plan or not may_lack_plan(source.target, config):
            raise
        _log.info("the engine has no plan, which a CPU does not need: %s", error)
        return config


def may_lack_plan(target: Target, config: BuildConfig) -> bool:
    """Return whether an engine without a plan is enough: for a CPU, unless `config` sets an option of the builder."""
    return target is Target.CPU and config == BuildConfig(profiles=config.profiles)


def default_folder(source: Source) -> Path:
    """Return the default engine folder of `source` in its run."""
    return source.run.path / default_folder_name(source.stage, source.precision, source.config.target)


def check_output(source: Source, output_dir: str | Path | None, overwrite: bool = False) -> Path:
    """Return the resolved path of the engine folder.

    Raises:
        ConfigError: the folder may not be replaced, or cannot be written.
    """
    default = default_folder(source)
    if output_dir is None or Path(output_dir).resolve() == default.resolve():
        hint = "move that away, or build elsewhere with --output_dir"
        return files.replaceable_folder(default, ENGINE_FOLDER, overwrite=True, option="the engine folder", hint=hint)
    return check_engine_output(output_dir, source.checkpoint, overwrite)


def check_engine_output(output_dir: str | Path, checkpoint: Path, overwrite: bool = False) -> Path:
    """Return the resolved path of an engine folder that is not the run's default. Raises ConfigError as `check_output`."""
    check_outside_checkpoints(output_dir)
    files.check_apart(output_dir, [checkpoint], holds=True)  # a folder around it is refused below
    return files.replaceable_folder(output_dir, ENGINE_FOLDER, overwrite=overwrite)


def _build_again(folder: Path, config: BuildConfig, on_progress: PhaseCallback | None) -> PlanDifference:
    """Build the plan of `folder` a second time in another process, and compare the plans."""
    second = folder / f".{PLAN_FILE}.again"
    try:
        build_plan(folder / ONNX_FILE, second, config, on_progress)
        return compare_plans(folder / PLAN_FILE, second)
    finally:
        second.unlink(missing_ok=True)
