"""Builds of engine folders from a checkpoint: ONNX file, plan, tokenizer and manifest, whole or not at all."""

from __future__ import annotations

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
from q8trt.errors import CheckpointError
from q8trt.export.options import ExportOptions
from q8trt.models import check_head, checkpoints, load_config, load_tokenizer, model_inputs, positions
from q8trt.models.activation import activation_of
from q8trt.quantization.precision import Precision
from q8trt.runs.config import model_name
from q8trt.runs.run import check_outside_checkpoints
from q8trt.tasks.heads import HeadKind

if TYPE_CHECKING:
    from q8trt.export.onnx import ExportedModel
    from q8trt.models.checkpoints import Model
    from q8trt.quantization.recipe import Recipe


@dataclass(frozen=True)
class _Built:
    """The parts of a build that its manifest describes."""

    precision: Precision
    exported: ExportedModel
    options: ExportOptions
    overflow_rows: str
    config: BuildConfig
    plan: PlanInfo
    difference: PlanDifference | None


def load_model(source: Source) -> tuple[Model, Recipe | None]:
    """Return the model of a checkpoint, and its recipe if it is quantized. Raises CheckpointError if it is damaged."""
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
    """Return the torch scores in the run: of the FP32 model and of the one being built."""
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
        backend=BackendInfo(plan.backend, plan.version, plan.sm_targets),
        metrics=_scores(source),
        report=_record(built, source.config.data.sample).to_dict(),
    )


def _text_columns(source: Source) -> list[str]:
    """Return the columns of the texts of an example, [] where they are unknown.

    Embeddings of pairs, whose texts are examples of their own, have none; nor has a tagger that was trained on words.
    """
    data, task = source.config.data, source.task
    if task.head.kind is HeadKind.TOKEN_CLASSIFICATION and data.train_file is not None:
        return []
    columns = list(data.columns or (() if data.is_custom else task.text_columns))
    return [] if task.embedding and len(columns) == 2 else columns


def _record(built: _Built, is_sample: bool) -> EngineRecord:
    """Return the facts that are known before the engine runs: the linter's forecast beside the built plan."""
    from q8trt.lint import LintConfig, lint

    linted = lint(built.exported.path, LintConfig(max_shapes=largest(built.config.profiles)))
    peak = built.plan.peak_memory_mib
    return EngineRecord(
        is_sample=is_sample,
        export=ExportRecord(built.exported.passes, built.exported.kept_fp32, built.overflow_rows, built.options),
        forecast=asdict(linted.forecast),
        findings=linted.count("error") + linted.count("warning"),
        in_float=linted.in_float,
        engine=built.plan.report,
        build=BuildRecord(
            seconds=round(built.plan.seconds, 3),
            peak_memory_mib=peak and round(peak, 1),
            timing_cache=built.plan.timing_cache,
            options=built.config,
            built_twice=built.difference,
        ),
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

    With FP16, training rows show what would overflow.

    Args:
        source, config, options: the checkpoint, and how its engine is built.
        output_dir: the engine folder; None for the run's default.
        on_progress: called with (phase, step, steps) while the plan is built.
        verify_deterministic: build the plan a second time, and note in the manifest whether the two are the same.
        overwrite: replace an older engine in `output_dir`; the run's default is replaced in any case.

    Raises:
        ConfigError: shapes beyond the position table, a precision that does not fit the checkpoint, an option that the
            backend lacks, or an output folder that is not to be replaced.
        BusyError: another process writes the engine folder.
        CheckpointError: the checkpoint is damaged.
        BackendError: no backend is installed, or none starts on this machine.
        EngineError: the backend refused the graph, or crashed.
    """
    from q8trt.export.onnx import export_onnx

    options, precision = (options or ExportOptions()).for_target(source.target), source.precision
    check_positions(config.profiles, positions(load_config(str(source.checkpoint))))
    config = replace(config, backend=started_backend(config).name)  # before the minutes that an export may take
    folder = Path(output_dir) if output_dir else default_folder(source)
    target = check_output(source, output_dir, overwrite)
    with files.exclusive(target):
        source.run.sweep()
        model, recipe = load_model(source)
        tokenizer = load_tokenizer(str(source.checkpoint))
        with files.atomic_folder(target) as temporary:
            batches, rows = overflow_batches(source, tokenizer) if precision.is_half else ([], "")
            exported = export_onnx(model, temporary / ONNX_FILE, precision, model_inputs(tokenizer), options, batches)
            plan = build_plan(exported.path, temporary / PLAN_FILE, config, on_progress)
            difference = _build_again(temporary, config, on_progress) if verify_deterministic else None
            tokenizer.save_pretrained(temporary)
            built = _Built(precision, exported, options, rows, config, plan, difference)
            manifest = _manifest(source, model, recipe, tokenizer, built)
            manifest = write_manifest(temporary, manifest)
            check_output(source, output_dir, overwrite)  # a file that was put there meanwhile stays
    return folder, manifest


def default_folder(source: Source) -> Path:
    """Return the folder of an engine in its run."""
    return source.run.path / default_folder_name(source.stage, source.precision, source.config.target)


def check_output(source: Source, output_dir: str | Path | None, overwrite: bool = False) -> Path:
    """Return where the engine folder is written, links resolved.

    Raises:
        ConfigError: what is there is not to be replaced, or the folder cannot be written.
    """
    default = default_folder(source)
    if output_dir is None or Path(output_dir).resolve() == default.resolve():
        hint = "move that away, or build elsewhere with --output_dir"
        return files.replaceable_folder(default, ENGINE_FOLDER, overwrite=True, option="the engine folder", hint=hint)
    return check_engine_output(output_dir, source.checkpoint, overwrite)


def check_engine_output(output_dir: str | Path, checkpoint: Path, overwrite: bool = False) -> Path:
    """Return where an engine folder outside of its run's default is written, links resolved; raises as `check_output`."""
    check_outside_checkpoints(output_dir)
    files.check_apart(output_dir, [checkpoint], holds=True)  # a folder that holds it is not replaced in any case
    return files.replaceable_folder(output_dir, ENGINE_FOLDER, overwrite=overwrite)


def _build_again(folder: Path, config: BuildConfig, on_progress: PhaseCallback | None) -> PlanDifference:
    """Build the plan of `folder` a second time, in another process, and compare the two."""
    second = folder / f".{PLAN_FILE}.again"
    try:
        build_plan(folder / ONNX_FILE, second, config, on_progress)
        return compare_plans(folder / PLAN_FILE, second)
    finally:
        second.unlink(missing_ok=True)
