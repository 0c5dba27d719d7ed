"""Fine-tuning, quantization-aware fine-tuning and distillation with `transformers.Trainer`.

A stage trains one model. In QAT, the forward pass contains the quantizers, and the straight-through estimator passes gradients
through their rounding (Q8BERT, arXiv 1910.06188, section 2.2). `q8trt.quantization.ranges` trains the ranges, and
`q8trt.training.distillation` adds a floating-point teacher.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import rotate_checkpoints

from q8trt import files
from q8trt.console.progress import is_main_process
from q8trt.errors import CheckpointError, InterruptedRunError
from q8trt.quantization.insertion import weights_quantized_once
from q8trt.quantization.ranges import Ranges, apply_ranges
from q8trt.quantization.recipe import Recipe
from q8trt.runs.run import Run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import Collator, Features
from q8trt.tasks.glue import Task
from q8trt.tasks.heads import HeadKind
from q8trt.tasks.metrics import METRICS
from q8trt.tasks.scoring import score
from q8trt.training import checkpoints as trainer_checkpoints
from q8trt.training.callbacks import DelayedQuantization, KeepBest, StepTimer, StopOnInterrupt, TrainingLog
from q8trt.training.distillation import PROJECTION, Distillation, Distiller, distilling

log = logging.getLogger("q8trt")


@dataclass(frozen=True)
class StageResult:
    """The result of training one stage.

    Attributes:
        best_metric: the task's main metric at the best checkpoint, whose weights the model has; None without evaluations.
        steps: number of optimizer steps.
        step_seconds_median: median seconds of an optimizer step, without evaluations and saving; None if none was timed.
        step_seconds_mean: mean seconds of an optimizer step.
    """

    best_metric: float | None
    steps: int
    step_seconds_median: float | None
    step_seconds_mean: float | None


class _ByLength(LengthGroupedSampler):
    """A sampler that groups rows of similar length, in an order that depends only on seed and epoch.

    The parent class draws from the global generator, whose state differs between processes and after `--resume`.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed())
        return super().__iter__()


class _Trainer(transformers.Trainer):
    """A Trainer with a teacher and with trained ranges."""

    #: The loss is a mean over the batch, so the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        distiller: Distiller | None,
        ranges: Ranges | None,
        range_learning_rate: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.distiller = distiller
        self.ranges = ranges
        self.range_learning_rate = range_learning_rate
        if distiller is not None:
            distiller.distillation.teacher.to(self.args.device)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Return a sampler that keeps the order of the rows, which `group_by_length` would change."""
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return _ByLength(sampler.lengths, sampler.batch_size, lambda: self.args.seed + int(self.state.epoch or 0))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return AdamW, with learned ranges in a separate group without weight decay and with a rate relative to the range."""
        if self.ranges is None or self.optimizer is not None:
            return super().create_optimizer(model)
        learned = self.ranges.parameters()
        for amax in learned:
            amax.requires_grad_(False)  # so that the Trainer's own groups leave it out
        optimizer = super().create_optimizer(model)
        for amax in learned:
            amax.requires_grad_(True)
        if learned:
            # Their gradients are tiny (lsq divides them by the root of the number of elements), so epsilon must be, too.
            group = {"lr": self.range_learning_rate, "weight_decay": 0.0, "eps": 1e-12}
            optimizer.add_param_group({"params": learned, **group})
        self.ranges.attach(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the Trainer's schedule. The warm-up ends at least one step before training does."""
        self.args.warmup_steps = min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1)
        return super().create_scheduler(num_training_steps, optimizer)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as the Trainer does, seal the checkpoint, and only then delete older ones."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each process writes the state of its own random generators
        if self.is_world_process_zero():
            trainer_checkpoints.seal(self._checkpoint_at(self.state.global_step))
            rotate_checkpoints(str(self.args.output_dir), limit, self.state.best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()  # others may read it next; if they end first, torchrun ends this process

    def _load_best_model(self) -> None:
        """Load the best checkpoint. Raises CheckpointError if it was damaged since it was written."""
        best = self._checkpoint_at(self.state.best_global_step)
        if damage := files.find_damage(best):
            raise CheckpointError(
                f"{best}/{damage}; continue the run with --resume, which starts from the newest sound checkpoint"
            )
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()

    def _checkpoint_at(self, step: Any) -> Path:
        return trainer_checkpoints.checkpoint_at(Path(str(self.args.output_dir)), step)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's loop with weights that are quantized once instead of for each batch."""
        with weights_quantized_once(self.accelerator.unwrap_model(self.model)):
            return super().evaluation_loop(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the label loss or, in training with a teacher, that of `Distiller`, a scalar; if requested, also the outputs."""
        if self.distiller is None or not model.training:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        with self.accelerator.autocast():
            target = self.distiller.ask_teacher(inputs)
        outputs = model(**inputs, **self.distiller.wanted)
        loss = self.distiller.loss(outputs, inputs, target)
        return (loss, outputs) if return_outputs else loss


#: Options that have the same name and meaning in `transformers.TrainingArguments`.
_SAME = (
    "max_steps", "weight_decay", "adam_epsilon", "max_grad_norm", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "eval_steps", "save_steps", "save_total_limit", "logging_steps", "fp16", "bf16", "seed",
    "dataloader_num_workers",
)  # fmt: skip


def _arguments(config: TrainingConfig, task: Task, folder: Path, epochs: float, learning_rate: float) -> Any:
    config.check_machine()
    on_cpu = config.on_cpu()
    return transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": config.lr_end, "power": config.lr_power},
        warmup_steps=config.warmup_ratio,
        train_sampling_strategy="sequential" if config.no_shuffle else "group_by_length" if config.group_by_length else "random",
        eval_strategy="steps" if config.do_eval else "no",
        save_strategy="steps",
        load_best_model_at_end=config.do_eval,
        metric_for_best_model=task.main_metric if config.do_eval else None,
        greater_is_better=METRICS[task.main_metric].higher_is_better if config.do_eval else None,
        data_seed=config.seed,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and os.environ.get("WORLD_SIZE", "1") != "1" else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not on_cpu,
        report_to="none",
        remove_unused_columns=False,
        **{name: getattr(config, name) for name in _SAME},
    )  # fmt: skip


def _use_loss_scale(trainer: transformers.Trainer, config: TrainingConfig) -> None:
    """Replace torch's default dynamic loss scale of FP16 training by the configured one."""
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler(
            "cuda",
            init_scale=config.loss_scale_value,
            growth_factor=config.loss_scale_factor,
            backoff_factor=1 / config.loss_scale_factor,
            growth_interval=config.loss_scale_window,
        )


def _metrics(rows: Features, prediction: Any) -> dict[str, float]:
    """Return the scores of the Trainer's predictions for `rows`. Predictions for tokens are padded to the longest row."""
    outputs = prediction.predictions
    if isinstance(outputs, tuple):  # question answering returns the starts, the ends, and both together
        outputs = outputs[-1] if rows.task.head.kind is HeadKind.QUESTION_ANSWERING else outputs[0]
    outputs = np.asarray(outputs, dtype=np.float32)
    if rows.task.per_token:
        outputs = np.concatenate([row[:length] for row, length in zip(outputs, rows.lengths.tolist(), strict=True)])
    return score(rows, outputs)


@dataclass(frozen=True)
class Quantization:
    """The quantization of the model that a stage trains.

    Attributes:
        recipe: the recipe of the quantized model; its `qat` is the treatment of the ranges.
        calibrate: function that measures every range of the model again, in place.
    """

    recipe: Recipe
    calibrate: Callable[[], object]


@dataclass(frozen=True)
class TrainingStage:
    """One training stage: the model, the rows and the schedule.

    Attributes:
        name: "fp32" or "int8", the name of the folders of its checkpoints and logs.
        model: the model, trained in place. At the end it has the best checkpoint's weights.
        train: the training rows.
        dev: the rows that choose the best checkpoint.
        epochs: passes over `train`.
        learning_rate: the peak of the schedule.
        folder: the run's folder.
        max_length: the maximum tokens of a row, which is the last padding bucket.
        distillation: a teacher; None to train on the labels alone.
        quantization: the training of the ranges of a quantized model; None for a float model, or to freeze the ranges.
    """

    name: str
    model: nn.Module
    train: Features
    dev: Features
    epochs: float
    learning_rate: float
    folder: Path
    max_length: int
    distillation: Distillation | None = None
    quantization: Quantization | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the Trainer's checkpoints, for `--resume`."""
        return self.folder / "checkpoints" / self.name


def _make_trainer(
    stage: TrainingStage,
    task: Task,
    tokenizer: Any,
    config: TrainingConfig,
    arguments: Any,
    distiller: Distiller | None,
    ranges: Ranges | None,
) -> _Trainer:
    """Return the Trainer of a stage, which logs to TensorBoard. Evaluations read `stage.dev` in the order of length."""
    dev = stage.dev.select(np.argsort(stage.dev.lengths, kind="stable").tolist())
    lengths = tuple(range(8, stage.max_length + 1, 8))  # less padding than with the engine's buckets
    tags_tokens = task.head.kind is HeadKind.TOKEN_CLASSIFICATION
    trainer = _Trainer(
        model=stage.model,
        args=arguments,
        train_dataset=stage.train,
        eval_dataset=cast(Any, dev),
        data_collator=Collator(tokenizer.pad_token_id, lengths, stage.max_length, tags_tokens),
        processing_class=tokenizer,
        compute_metrics=partial(_metrics, dev),
        distiller=distiller,
        ranges=ranges,
        range_learning_rate=config.range_learning_rate,
    )
    for printer in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printer)
    trainer.add_callback(KeepBest())
    if trainer.is_world_process_zero():
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(stage.folder / "logs" / stage.name))))
    _use_loss_scale(trainer, config)
    return trainer


def train_stage(
    stage: TrainingStage, task: Task, tokenizer: Any, config: TrainingConfig, resume: bool = False
) -> StageResult:
    """Train `stage.model` in place.

    Args:
        stage: the model, its rows and the schedule.
        task: decides the loss, and the metric that chooses the best checkpoint.
        tokenizer: its padding token fills batches, and a teacher's token types begin after its separator.
        config: the options of training.
        resume: whether to continue from the newest sound checkpoint of this stage, if there is one.

    Raises:
        ConfigError: the options do not fit this machine.
        CheckpointError: the best checkpoint was damaged during training.
        InterruptedRunError: Ctrl-C or SIGTERM. A checkpoint was saved, and `resume` continues from it.
    """
    arguments = _arguments(config, task, stage.checkpoints, stage.epochs, stage.learning_rate)
    checkpoint = _resume_point(stage, arguments.world_size) if resume else None
    if checkpoint is not None:
        state = trainer_checkpoints.load_state(checkpoint)
        if state.global_step >= state.max_steps:  # the Trainer would train one more step
            trainer_checkpoints.load_final_weights(stage.model, checkpoint, state, PROJECTION)
            return StageResult(state.best_metric, state.global_step, None, None)
    with contextlib.ExitStack() as stack:
        ranges = None
        if stage.quantization is not None:
            ranges = stack.enter_context(apply_ranges(stage.model, stage.quantization.recipe))
        distiller = stack.enter_context(
            distilling(stage.model, stage.distillation, task.head.kind, tokenizer.sep_token_id)
        )
        trainer = _make_trainer(stage, task, tokenizer, config, arguments, distiller, ranges)
        return _run(trainer, stage, config.quant_start_step, checkpoint)


def _resume_point(stage: TrainingStage, processes: int) -> Path | None:
    """Log and return the checkpoint to continue from, the same in every process, and remove newer checkpoints."""
    choice: list[Any] = [None]
    if is_main_process():
        point = trainer_checkpoints.find_resume_point(stage.checkpoints)
        if line := point.describe(stage.name):
            log.info("%s", line)
        trainer_checkpoints.remove_newer(stage.checkpoints, point.checkpoint)
        choice = [point.checkpoint]
    checkpoint: Path | None = broadcast_object_list(choice)[0]
    if checkpoint is not None and (writers := trainer_checkpoints.processes_of(checkpoint)) != processes:
        log.warning(
            "%s was written by %d processes and this run has %d: the result differs from that of an uninterrupted run",
            checkpoint.name, writers, processes,
        )  # fmt: skip
    return checkpoint


def _run(trainer: _Trainer, stage: TrainingStage, quant_start_step: int, checkpoint: Path | None) -> StageResult:
    """Train from `checkpoint` or from the start, until the end or the first Ctrl-C or SIGTERM."""
    timer, stopper, log_lines = StepTimer(), StopOnInterrupt(), TrainingLog(stage.name.upper())
    for callback in (log_lines, timer, stopper):
        trainer.add_callback(callback)
    if stage.quantization is not None and quant_start_step:
        # This callback comes last, because it reads what the others request at the end of a step.
        trainer.add_callback(DelayedQuantization(stage.model, quant_start_step, stage.quantization.calibrate))
    try:
        with stopper, contextlib.closing(log_lines):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        if trainer.is_world_process_zero():
            trainer_checkpoints.remove_incomplete(stage.checkpoints)
    if stopper.requested:
        raise InterruptedRunError(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps} of stage {stage.name}; "
            f"continue with: {Run(stage.folder).resume_command}"
        ) from stopper.interrupt
    seconds = timer.of_interest()
    return StageResult(
        best_metric=trainer.state.best_metric,
        steps=trainer.state.global_step,
        step_seconds_median=statistics.median(seconds) if seconds else None,
        step_seconds_mean=statistics.fmean(seconds) if seconds else None,
    )
