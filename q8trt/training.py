"""Fine-tuning, quantization-aware fine-tuning and distillation, on `transformers.Trainer`.

A stage trains one model. In QAT the quantizers are in the forward pass and the straight-through estimator carries the
gradient past their rounding (Q8BERT, arXiv 1910.06188, section 2.2); the FP32 model can teach: its logits are a target
beside the labels.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from q8trt.data import Collator, Features
from q8trt.errors import ConfigError, InterruptedRunError
from q8trt.metrics import compute_from_logits
from q8trt.tasks import Task
from q8trt.trainer_callbacks import KeepBest, Progress, StepTimer, StopOnInterrupt
from q8trt.training_config import TrainingConfig


@dataclass(frozen=True)
class Distillation:
    """A teacher and how much it counts: loss = label_weight * label loss + teacher_weight * distance to its logits."""

    teacher: nn.Module
    label_weight: float
    teacher_weight: float
    temperature: float


@dataclass(frozen=True)
class StageResult:
    """What training one stage gave.

    Attributes:
        best_metric: the task's main metric at the best checkpoint, which the model now holds.
        steps: optimizer steps taken.
        step_seconds_median: seconds from the start of an optimizer step to its end; evaluation and saving left out.
        step_seconds_mean: the same, averaged.
    """

    best_metric: float | None
    steps: int
    step_seconds_median: float | None
    step_seconds_mean: float | None


class _ByLength(LengthGroupedSampler):
    """Similar lengths together, in an order that seed and epoch alone decide.

    The parent draws from the global generator, whose state differs between processes and after `--resume`.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed())
        return super().__iter__()


class _Trainer(transformers.Trainer):
    """The Trainer with a teacher."""

    #: Our loss is a mean over the batch, so the Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, task: Task, distillation: Distillation | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.task = task
        self.distillation = distillation
        if distillation is not None:
            distillation.teacher.to(self.args.device).eval().requires_grad_(False)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        return _ByLength(sampler.lengths, sampler.batch_size, lambda: self.args.seed + int(self.state.epoch or 0))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Label loss (mean squared error or cross entropy), mixed with the distance to the teacher's logits."""
        outputs = model(**inputs)
        loss = outputs.loss
        if self.distillation is not None and model.training:
            with torch.no_grad():
                target = self.distillation.teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits
            distance = logit_distance(outputs.logits, target, self.task.is_regression, self.distillation.temperature)
            loss = self.distillation.label_weight * loss + self.distillation.teacher_weight * distance
        return (loss, outputs) if return_outputs else loss


def logit_distance(
    student: torch.Tensor, teacher: torch.Tensor, is_regression: bool, temperature: float
) -> torch.Tensor:
    """Distance of logits (batch, num_labels): mean squared error for regression, else KL divergence.

    The KL divergence is of softmax(logits / temperature), summed over labels, averaged over the batch, times
    temperature^2 so that its gradient does not depend on it (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    if is_regression:
        return nn.functional.mse_loss(student.float(), teacher.float())
    log_p = nn.functional.log_softmax(student.float() / temperature, dim=-1)
    log_q = nn.functional.log_softmax(teacher.float() / temperature, dim=-1)
    return nn.functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def _is_complete(checkpoint: Path) -> bool:
    """trainer_state.json is written last; where it can be read, the rest is there."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage, or None."""
    complete = [path for path in folder.glob("checkpoint-*") if _is_complete(path)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _finished_state(checkpoint: Path) -> Any:
    """The Trainer's state if `checkpoint` is of the last step, else None: the Trainer would take one step more."""
    state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state if state.global_step >= state.max_steps else None


def _load_best(model: nn.Module, folder: Path, state: Any) -> None:
    """Give `model` the weights that training would have ended with."""
    best = folder / f"checkpoint-{state.best_global_step}"
    last = folder / f"checkpoint-{state.global_step}"
    model.load_state_dict(load_file((best if state.best_global_step else last) / "model.safetensors"))


def _remove_incomplete(folder: Path) -> None:
    """Delete checkpoints that a crash, a full disk or a second Ctrl-C left half-written."""
    for path in folder.glob("checkpoint-*"):
        if not _is_complete(path):
            shutil.rmtree(path, ignore_errors=True)


def _arguments(config: TrainingConfig, task: Task, folder: Path, epochs: float, learning_rate: float) -> Any:
    on_cpu = config.use_cpu or not torch.cuda.is_available()
    if config.fp16 and on_cpu:
        raise ConfigError(
            "--fp16 trains with mixed precision on a CUDA GPU and there is none; leave it out, or use --bf16"
        )
    return transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        max_steps=config.max_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": config.lr_end, "power": config.lr_power},
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        train_sampling_strategy="sequential" if config.no_shuffle else "group_by_length" if config.group_by_length else "random",
        eval_strategy="steps" if config.do_eval else "no",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        load_best_model_at_end=config.do_eval,
        metric_for_best_model=task.main_metric if config.do_eval else None,
        greater_is_better=True if config.do_eval else None,
        logging_steps=config.logging_steps,
        fp16=config.fp16,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and os.environ.get("WORLD_SIZE", "1") != "1" else None,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=config.dataloader_num_workers,
        dataloader_pin_memory=not on_cpu,
        report_to="none",
        remove_unused_columns=False,
    )  # fmt: skip


def _use_loss_scale(trainer: transformers.Trainer, config: TrainingConfig) -> None:
    """Give FP16 training the configured dynamic loss scale in place of torch's default one."""
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler(
            "cuda",
            init_scale=config.loss_scale_value,
            growth_factor=config.loss_scale_factor,
            backoff_factor=1 / config.loss_scale_factor,
            growth_interval=config.loss_scale_window,
        )


def _metrics_function(task: Task) -> Callable[[Any], dict[str, float]]:
    def compute(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return compute_from_logits(task, np.asarray(logits, dtype=np.float32), prediction.label_ids)

    return compute


@dataclass(frozen=True)
class Stage:
    """One training stage: which model, on what, for how long.

    Attributes:
        name: "fp32" or "int8"; names the folders of its checkpoints and logs.
        model: trained in place; at the end it holds the best checkpoint's weights.
        train: the training rows.
        dev: the rows that choose the best checkpoint.
        epochs: passes over `train`.
        learning_rate: the peak of the schedule.
        folder: the run's folder.
        max_length: the longest row, in tokens; the last padding bucket.
        distillation: a teacher, or None to learn from the labels alone.
    """

    name: str
    model: nn.Module
    train: Features
    dev: Features
    epochs: float
    learning_rate: float
    folder: Path
    max_length: int
    distillation: Distillation | None = field(default=None)


def _training_lengths(max_length: int) -> tuple[int, ...]:
    """Batches are padded to a multiple of 8: fewer tokens than the engine's buckets, which training need not keep to."""
    return tuple(range(8, max_length + 1, 8))


def _make_trainer(stage: Stage, task: Task, tokenizer: Any, config: TrainingConfig, arguments: Any) -> _Trainer:
    """The Trainer of a stage, with our own log and TensorBoard folder; evaluation goes through `stage.dev` by length."""
    order = np.argsort(stage.dev.lengths, kind="stable").tolist()
    trainer = _Trainer(
        model=stage.model,
        args=arguments,
        train_dataset=stage.train,
        eval_dataset=cast(Any, torch.utils.data.Subset(cast(Any, stage.dev), order)),
        data_collator=Collator(tokenizer.pad_token_id, _training_lengths(stage.max_length), stage.max_length),
        processing_class=tokenizer,
        compute_metrics=_metrics_function(task),
        task=task,
        distillation=stage.distillation,
    )
    for printer in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printer)
    trainer.add_callback(KeepBest())
    trainer.add_callback(Progress(stage.name.upper()))
    if trainer.is_world_process_zero():
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(stage.folder / "logs" / stage.name))))
    _use_loss_scale(trainer, config)
    return trainer


def train_stage(stage: Stage, task: Task, tokenizer: Any, config: TrainingConfig, resume: bool = False) -> StageResult:
    """Train `stage.model` in place.

    Args:
        stage: what to train.
        task: gives the loss and the metric that chooses the best checkpoint.
        tokenizer: its padding token fills batches.
        config: the options of training.
        resume: go on from the newest complete checkpoint of this stage, if there is one.

    Raises:
        ConfigError: the options do not fit this machine.
        InterruptedRunError: Ctrl-C; a checkpoint was saved and `resume` continues from it.
    """
    checkpoints = stage.folder / "checkpoints" / stage.name
    arguments = _arguments(config, task, checkpoints, stage.epochs, stage.learning_rate)
    checkpoint = last_checkpoint(checkpoints) if resume else None
    finished = _finished_state(checkpoint) if checkpoint else None
    if finished is not None:
        _load_best(stage.model, checkpoints, finished)
        return StageResult(finished.best_metric, finished.global_step, None, None)
    trainer = _make_trainer(stage, task, tokenizer, config, arguments)
    timer, stopper = StepTimer(), StopOnInterrupt()
    trainer.add_callback(timer)
    trainer.add_callback(stopper)
    try:
        with stopper:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        if trainer.is_world_process_zero():
            _remove_incomplete(checkpoints)
    if stopper.requested:
        raise InterruptedRunError(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps} of stage {stage.name}; "
            f"continue with: python finetune.py --resume {stage.folder}"
        )
    seconds = timer.of_interest()
    return StageResult(
        best_metric=trainer.state.best_metric,
        steps=trainer.state.global_step,
        step_seconds_median=statistics.median(seconds) if seconds else None,
        step_seconds_mean=statistics.fmean(seconds) if seconds else None,
    )
