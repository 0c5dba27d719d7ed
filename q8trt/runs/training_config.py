"""The options of training, apart from what trains, so that `--help` needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from q8trt.errors import ConfigError

#: Largest whole number of an option: beyond it, counters of torch and transformers overflow.
_LARGEST = 2**31 - 1
#: Largest seed that NumPy takes.
_LARGEST_SEED = 2**32 - 1


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainingConfig:
    """Options of `q8trt.training.stage`; names follow `transformers.TrainingArguments`, defaults are BERT's on GLUE.

    Raises:
        ConfigError: a value outside its range, or options that exclude each other.
    """

    num_train_epochs: float = _option(3.0, "epochs of FP32 fine-tuning")
    learning_rate: float = _option(5e-5, "peak learning rate of FP32 fine-tuning")
    qat_epochs: float = _option(1.0, "epochs of quantization-aware fine-tuning")
    qat_learning_rate: float = _option(3e-5, "peak learning rate of quantization-aware fine-tuning")
    range_learning_rate: float = _option(
        1e-3, "peak learning rate of ranges that the recipe learns (lsq, pact), as a share of the range"
    )
    quant_start_step: int = _option(0, "steps of QAT that train in floating point before the quantizers come on")
    per_device_train_batch_size: int = _option(16, "training rows a step on each device")
    per_device_eval_batch_size: int = _option(32, "evaluation rows a step on each device")
    gradient_accumulation_steps: int = _option(1, "batches an optimizer step")
    max_steps: int = _option(-1, "stop each stage after this many steps; -1: by epochs")
    lr_end: float = _option(1e-14, "learning rate at the end of the polynomial decay")
    lr_power: float = _option(1.0, "power of the polynomial decay")
    warmup_ratio: float = _option(0.1, "share of the steps in which the learning rate rises")
    weight_decay: float = _option(1e-4, "AdamW weight decay (not on biases and LayerNorm)")
    adam_epsilon: float = _option(1e-6, "AdamW epsilon")
    max_grad_norm: float = _option(1.0, "gradient clipping; 0: none")
    dropout: float | None = _option(
        None, "dropout of hidden states, attention and classifier; default: the model's own"
    )
    qat_dropout: float | None = _option(None, "dropout during QAT; default: that of the FP32 model")
    label_loss_weight: float = _option(0.5, "weight of the label loss while a teacher is used; 0: teacher alone")
    distillation_weight: float = _option(0.5, "weight of the distance to the teacher's logits")
    hidden_loss_weight: float = _option(
        0.0, "weight of the distance to the teacher's hidden states (TinyBERT: mean squared error, embeddings included)"
    )
    attention_loss_weight: float = _option(
        0.0, "weight of the distance to the teacher's attention probabilities; switches attention dropout off"
    )
    distillation_temperature: float = _option(1.0, "temperature of the teacher's logits (classification)")
    do_eval: bool = _option(True, "evaluate while training and keep the best checkpoint")
    eval_steps: int = _option(200, "steps between evaluations")
    save_steps: int = _option(200, "steps between checkpoints; a multiple of --eval_steps")
    save_total_limit: int = _option(2, "checkpoints kept (the best one is always among them)")
    logging_steps: int = _option(50, "steps between lines of the log")
    group_by_length: bool = _option(False, "put rows of similar length into a batch: faster, but it can cost accuracy")
    no_shuffle: bool = _option(False, "take the training rows in file order")
    fp16: bool = _option(False, "mixed precision FP16 with dynamic loss scaling (CUDA)")
    bf16: bool = _option(False, "mixed precision BF16")
    loss_scale_value: float = _option(65536.0, "initial loss scale of --fp16")
    loss_scale_factor: float = _option(2.0, "factor by which the loss scale grows and shrinks")
    loss_scale_window: int = _option(50, "steps without overflow before the loss scale grows")
    seed: int = _option(42, "seed of initialization, shuffling and dropout")
    use_cpu: bool = _option(False, "train on the CPU although there is a GPU")
    dataloader_num_workers: int = _option(0, "processes that prepare batches")

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.fp16 and self.bf16:
            raise ConfigError("--fp16 and --bf16 exclude each other; give one")
        if self.do_eval and self.save_steps % self.eval_steps:
            raise ConfigError(
                f"--save_steps {self.save_steps} must be a multiple of --eval_steps {self.eval_steps}, "
                "so that the best evaluated step has a checkpoint"
            )
        weights = ("label_loss_weight", "distillation_weight", "hidden_loss_weight", "attention_loss_weight")
        if not any(getattr(self, name) for name in weights):
            raise ConfigError(f"{', '.join(f'--{name}' for name in weights)} are all 0: nothing is learned")

    def on_cpu(self) -> bool:
        """Whether training runs on the CPU: asked for, or for want of a GPU."""
        import torch

        return self.use_cpu or not torch.cuda.is_available()

    def check_machine(self) -> None:
        """This machine can train as configured.

        Raises:
            ConfigError: --fp16 without a CUDA GPU.
        """
        if self.fp16 and self.on_cpu():
            raise ConfigError(
                "--fp16 trains with mixed precision on a CUDA GPU and there is none; leave it out, or use --bf16"
            )

    def check_schedule(self, rows: int, stages: Collection[str]) -> None:
        """Check what only the number of training rows decides, for every stage that trains.

        Args:
            rows: training rows.
            stages: of "fp32" and "int8", those that train.

        Raises:
            ConfigError: a stage has no usable schedule.
        """
        for stage, epochs, rate in (
            ("fp32", "num_train_epochs", "learning_rate"),
            ("int8", "qat_epochs", "qat_learning_rate"),
        ):
            if stage not in stages:
                continue
            if self.lr_end >= getattr(self, rate):
                raise ConfigError(
                    f"--lr_end {self.lr_end} is not below --{rate} {getattr(self, rate)}, the rate that falls to it; "
                    "lower --lr_end"
                )
            steps = self._steps(rows, getattr(self, epochs))
            if steps > _LARGEST:
                raise ConfigError(
                    f"--{epochs} {getattr(self, epochs):g} is {steps:.3g} steps on {rows:,} rows, expected at most {_LARGEST}"
                )
            if stage == "int8" and self.quant_start_step >= steps:
                raise ConfigError(
                    f"--quant_start_step {self.quant_start_step}: QAT has {math.ceil(steps)} steps here, so none would "
                    "train with quantizers; lower it, or raise --qat_epochs or --max_steps"
                )

    def _steps(self, rows: int, epochs: float) -> float:
        """Return the optimizer steps of `epochs` passes, before rounding up."""
        if self.max_steps > 0:
            return self.max_steps
        batches = math.ceil(rows / (self.per_device_train_batch_size * self._devices()))
        return epochs * max(math.ceil(batches / self.gradient_accumulation_steps), 1)

    def _devices(self) -> int:
        """Return the number of devices that share a batch: torchrun's processes, or the GPUs of a process alone."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 or self.on_cpu():
            return processes
        import torch

        return torch.cuda.device_count()

    def _check_ranges(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"--{option.name} {value}, expected a finite number")
            largest = _LARGEST_SEED if option.name == "seed" else _LARGEST
            if type(value) is int and value > largest:
                raise ConfigError(f"--{option.name} {value}, expected at most {largest}")
        at_least_one = (
            "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "eval_steps",
            "save_steps", "save_total_limit", "logging_steps", "loss_scale_window",
        )  # fmt: skip
        above_zero = (
            "num_train_epochs", "learning_rate", "qat_epochs", "qat_learning_rate", "range_learning_rate", "lr_end",
            "lr_power", "adam_epsilon", "distillation_temperature", "loss_scale_value",
        )  # fmt: skip
        not_negative = (
            "weight_decay", "max_grad_norm", "label_loss_weight", "distillation_weight", "hidden_loss_weight",
            "attention_loss_weight", "quant_start_step", "dataloader_num_workers", "seed", "warmup_ratio",
        )  # fmt: skip
        for names, fits, words in (
            (at_least_one, lambda value: value >= 1, "1 or more"),
            (above_zero, lambda value: value > 0, "more than 0"),
            (not_negative, lambda value: value >= 0, "0 or more"),
        ):
            for name in names:
                if not fits(getattr(self, name)):
                    raise ConfigError(f"--{name} {getattr(self, name)}, expected {words}")
        if self.warmup_ratio >= 1:
            raise ConfigError(f"--warmup_ratio {self.warmup_ratio}, expected a share of the steps below 1")
        for name in ("dropout", "qat_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"--{name} {value}, expected from 0 to below 1")
        if self.loss_scale_factor <= 1:
            raise ConfigError(f"--loss_scale_factor {self.loss_scale_factor}, expected more than 1")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ConfigError(f"--max_steps {self.max_steps}, expected 1 or more, or -1 for whole epochs")
