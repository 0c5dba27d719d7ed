"""A checkpoint to an engine folder: ONNX file, plan, tokenizer, manifest. Whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import checkpoints, files
from q8trt.engine.build import BuildConfig, PlanInfo, build_plan
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, BackendInfo, Manifest, ModelInfo, TaskInfo, write_manifest
from q8trt.engine.shapes import ShapeProfile, check_positions
from q8trt.errors import CheckpointError, ConfigError
from q8trt.finetuning import FinetuneConfig
from q8trt.runs import RUN_FILE, STAGES, Run, newest_run, open_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from q8trt.quantization.recipe import Recipe
    from q8trt.tasks import Task


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

    @property
    def default_output(self) -> Path:
        """`engine` for the QAT engine of a run, `engine-<stage>` for its others."""
        return self.run.path / ("engine" if self.stage == "int8" else f"engine-{self.stage}")


def find_source(precision: str, checkpoint: str | None, runs_dir: str, stage: str | None = None) -> Source:
    """The checkpoint to build from: the one given, or the newest run's that fits `precision`.

    Args:
        precision: "fp32", "fp16", "int8" or "int8+fp16".
        checkpoint: a run folder, or a checkpoint folder inside a run; None for the newest run.
        runs_dir: the folder of runs.
        stage: take this stage's checkpoint, "fp32", "ptq" or "int8"; None for the best that fits.

    Raises:
        ConfigError: there is no run, or none that fits; or the stage does not fit the precision.
        CheckpointError: there is no such folder.
    """
    stages = ("int8", "ptq") if precision.startswith("int8") else ("fp32",)
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
            return Source(folder, run, FinetuneConfig.from_dict(run.record["config"]), name)
    raise ConfigError(
        f"{run.path} has no finished {' or '.join(stages)} checkpoint; finish it: python finetune.py --resume {run.path}"
    )


def default_profile(source: Source) -> ShapeProfile:
    """The default profile reaches as far as the model was trained."""
    length = source.config.data.max_seq_length
    return ShapeProfile((1, 1), (16, length), (32, length))


def _load(source: Source) -> tuple[PreTrainedModel, Recipe | None]:
    if source.stage == "fp32":
        return checkpoints.load_finetuned(source.checkpoint, source.task), None
    return checkpoints.load_quantized(source.checkpoint)


def _scores(source: Source) -> dict[str, Any]:
    """The torch scores that the run noted: of the FP32 model and of the one being built."""
    entries = {stage: source.run.stage(stage) for stage in {"fp32", source.stage}}
    return {f"torch_{stage}": entry["scores"] for stage, entry in sorted(entries.items()) if entry}


def _manifest(
    source: Source, model: PreTrainedModel, recipe: Recipe | None, precision: str, inputs: tuple[str, ...],
    tokenizer: Any, shapes: ShapeProfile, plan: PlanInfo,
) -> Manifest:  # fmt: skip
    from q8trt.export.onnx import OPSET

    task, config = source.task, model.config
    return Manifest(
        task=TaskInfo(task.name, list(task.labels), task.is_regression, task.is_pair, task.main_metric),
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
        shapes=shapes,
        backend=BackendInfo(plan.backend, plan.version, plan.sm_targets),
        metrics=_scores(source),
    )


def positions(config: Any) -> int:
    """Tokens that the position table holds; RoBERTa's starts after its padding index."""
    table: int = config.max_position_embeddings
    return table - config.pad_token_id - 1 if config.model_type == "roberta" else table


def build_engine(
    source: Source,
    precision: str,
    config: BuildConfig,
    output_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Path, Manifest]:
    """Export `source` and build its plan.

    Args:
        source: the checkpoint.
        precision: "fp32", "fp16", "int8" or "int8+fp16".
        config: backend, shapes, timing cache.
        output_dir: the engine folder, replaced when complete; None for the run's default.
        on_progress: called with (phase, step, steps) while the plan is built.

    Returns:
        the engine folder and its manifest.

    Raises:
        ConfigError: shapes beyond the position table, or a precision that does not fit the checkpoint.
        CheckpointError: the checkpoint is damaged.
        BackendError: no backend is installed.
        EngineError: the backend refused the graph.
    """
    from q8trt.engine.backend import find_backend
    from q8trt.export.onnx import export_onnx

    find_backend(config.backend)  # before the minutes that loading and exporting may take
    check_positions(config.shapes, positions(checkpoints.load_config(str(source.checkpoint))))
    folder = Path(output_dir) if output_dir else _output(source, precision)
    model, recipe = _load(source)
    tokenizer = checkpoints.load_tokenizer(str(source.checkpoint))
    with files.atomic_folder(folder) as temporary:
        exported = export_onnx(model, temporary / ONNX_FILE, precision, model_inputs(tokenizer))
        plan = build_plan(temporary / ONNX_FILE, temporary / PLAN_FILE, config, on_progress)
        tokenizer.save_pretrained(temporary)
        manifest = _manifest(source, model, recipe, precision, exported.input_names, tokenizer, config.shapes, plan)
        manifest = write_manifest(temporary, manifest)
    return folder, manifest


def model_inputs(tokenizer: Any) -> tuple[str, ...]:
    """The arrays that the tokenizer makes, in BERT's order."""
    return tuple(n for n in ("input_ids", "attention_mask", "token_type_ids") if n in tokenizer.model_input_names)


def _output(source: Source, precision: str) -> Path:
    """The run's default folder; precisions with FP16 have one of their own: `engine-fp16` of FP32, `engine...-fp16`."""
    default = source.default_output
    if not precision.endswith("fp16"):
        return default
    return default.with_name("engine-fp16" if source.stage == "fp32" else f"{default.name}-fp16")
