"""The options of training. Importing them needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, fields

from q8trt.console.options import SHARE, Values, at_least, check_options, more_than, option
from q8trt.errors import ConfigError

#: Largest whole number of an option. With larger numbers, counters of torch and transformers overflow.
_LARGEST = 2**31 - 1
#: Largest seed that NumPy takes.
_LARGEST_SEED = 2**32 - 1


_ONE, _ZERO, _POSITIVE = at_least(1), at_least(0), more_than(0)
_STEPS = Values("1 or more, or -1 for whole epochs", lambda value: value == -1 or value >= 1)


@dataclass(frozen=True)
class TrainingConfig:
    """Options of training. The names follow `transformers.TrainingArguments`, the defaults suit BERT on GLUE.

    Raises:
        ConfigError: a value is out of range, or options exclude each other.
    """

    num_train_epochs: float = option(3.0, "epochs of FP32 fine-tuning", values=_POSITIVE)
    learning_rate: float = option(5e-5, "peak learning rate of FP32 fine-tuning", values=_POSITIVE)
    qat_epochs: float = option(1.0, "epochs of quantization-aware training (QAT)", values=_POSITIVE)
    qat_learning_rate: float = option(3e-5, "peak learning rate of QAT", values=_POSITIVE)
    range_learning_rate: float = option(
        1e-3,
        "peak learning rate of the ranges that the recipe learns (lsq, pact), as a share of the range",
        values=_POSITIVE,
    )
    quant_start_step: int = option(
        0, "steps of QAT that train in floating point before quantization starts", values=_ZERO
    )
    per_device_train_batch_size: int = option(16, "training rows in a step on each device", values=_ONE)
    per_device_eval_batch_size: int = option(32, "evaluation rows in a batch on each device", values=_ONE)
    gradient_accumulation_steps: int = option(1, "batches in an optimizer step", values=_ONE)
    max_steps: int = option(
        -1, "optimizer steps of each stage, instead of epochs", unset="-1, the epochs decide", values=_STEPS
    )
    lr_end: float = option(1e-14, "learning rate at the end of the polynomial decay", values=_POSITIVE)
    lr_power: float = option(1.0, "power of the polynomial decay", values=_POSITIVE)
    warmup_ratio: float = option(0.1, "share of the steps in which the learning rate rises", values=_ZERO)
    weight_decay: float = option(1e-4, "weight decay of AdamW, not on biases and LayerNorm", values=_ZERO)
    adam_epsilon: float = option(1e-6, "epsilon of AdamW", values=_POSITIVE)
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0 does not clip", values=_ZERO)
    dropout: float | None = option(
        None,
        "every dropout of the model: embeddings, hidden states, attention and head",
        unset="the model's own",
        values=SHARE,
    )
    qat_dropout: float | None = option(None, "dropout during QAT", unset="that of the FP32 model", values=SHARE)
    label_loss_weight: float = option(
        0.5, "weight of the label loss when a teacher is used; 0 trains with the teacher alone", values=_ZERO
    )
    distillation_weight: float = option(0.5, "weight of the distance to the teacher's logits", values=_ZERO)
    hidden_loss_weight: float = option(
        0.0,
        "weight of the distance to the teacher's hidden states (TinyBERT: mean squared error, embeddings included)",
        values=_ZERO,
    )
    attention_loss_weight: float = option(
        0.0,
        "weight of the distance to the teacher's attention probabilities; switches attention dropout off",
        values=_ZERO,
    )
    distillation_temperature: float = option(
        1.0, "temperature of the teacher's logits (classification)", values=_POSITIVE
    )
    do_eval: bool = option(True, "evaluate while training and keep the best checkpoint")
    eval_steps: int = option(200, "steps between evaluations", values=_ONE)
    save_steps: int = option(200, "steps between checkpoints; a multiple of --eval_steps", values=_ONE)
    save_total_limit: int = option(2, "number of checkpoints to keep, including the best one", values=_ONE)
    logging_steps: int = option(50, "steps between lines of the log", values=_ONE)
    group_by_length: bool = option(False, "put rows of similar length in a batch; faster, but it can cost accuracy")
    no_shuffle: bool = option(False, "read the training rows in file order")
    fp16: bool = option(False, "train in FP16 mixed precision with dynamic loss scaling (CUDA)")
    bf16: bool = option(False, "train in BF16 mixed precision")
    loss_scale_value: float = option(65536.0, "initial loss scale of --fp16", values=_POSITIVE)
    loss_scale_factor: float = option(2.0, "factor by which the loss scale grows and shrinks", values=more_than(1))
    loss_scale_window: int = option(50, "steps without overflow before the loss scale grows", values=_ONE)
    seed: int = option(42, "seed of initialization, choice of rows, shuffling and dropout", values=_ZERO)
    use_cpu: bool = option(False, "train on the CPU even if there is a GPU")
    dataloader_num_workers: int = option(0, "processes that prepare batches", values=_ZERO)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, largest = getattr(self, each.name), _LARGEST_SEED if each.name == "seed" else _LARGEST
            if type(value) is int and value > largest:
                raise ConfigError(f"--{each.name} {value}, expected at most {largest}")
        check_options(self)
        if self.warmup_ratio >= 1:
            raise ConfigError(f"--warmup_ratio {self.warmup_ratio}, expected a share of the steps below 1")
        if self.fp16 and self.bf16:
            raise ConfigError("--fp16 and --bf16 exclude each other; give one")
        if self.do_eval and self.save_steps % self.eval_steps:
            raise ConfigError(
                f"--save_steps {self.save_steps} must be a multiple of --eval_steps {self.eval_steps}, "
                "so that the best evaluated step has a checkpoint"
            )
        weights = ("label_loss_weight", "distillation_weight", "hidden_loss_weight", "attention_loss_weight")
        if not any(getattr(self, name) for name in weights):
            raise ConfigError(f"{', '.join(f'--{name}' for name in weights)} are all 0; give one of them more than 0")

    def on_cpu(self) -> bool:
        """Return whether training runs on the CPU, by option or because there is no GPU."""
        import torch

        return self.use_cpu or not torch.cuda.is_available()

    def check_machine(self) -> None:
        """Check that this machine can train as configured.

        Raises:
            ConfigError: --fp16 without a CUDA GPU.
        """
        if self.fp16 and self.on_cpu():
            raise ConfigError("--fp16 needs a CUDA GPU, and there is none; leave it out, or use --bf16")

    def check_schedule(self, rows: int, stages: Collection[str]) -> None:
        """Check the schedule of every stage that trains.

        Args:
            rows: number of training rows.
            stages: the stages that train, of "fp32" and "int8".

        Raises:
            ConfigError: `lr_end` is not below a learning rate, a stage has too many steps, or QAT ends before it quantizes.
        """
        for stage, epochs, rate in (
            ("fp32", "num_train_epochs", "learning_rate"),
            ("int8", "qat_epochs", "qat_learning_rate"),
        ):
            if stage not in stages:
                continue
            if self.lr_end >= getattr(self, rate):
                raise ConfigError(f"--lr_end {self.lr_end} is not below --{rate} {getattr(self, rate)}; lower --lr_end")
            steps = self._steps(rows, getattr(self, epochs))
            if steps > _LARGEST:
                raise ConfigError(
                    f"--{epochs} {getattr(self, epochs):g} is {steps:.3g} steps on {rows:,} rows, expected at most {_LARGEST}"
                )
            if stage == "int8" and self.quant_start_step >= steps:
                raise ConfigError(
                    f"--quant_start_step {self.quant_start_step}, but QAT has {math.ceil(steps)} steps, so no step would "
                    "train with quantizers; lower it, or raise --qat_epochs or --max_steps"
                )

    def _steps(self, rows: int, epochs: float) -> float:
        """Return the number of optimizer steps of `epochs` passes, before rounding up."""
        if self.max_steps > 0:
            return self.max_steps
        batches = math.ceil(rows / (self.per_device_train_batch_size * self._devices()))
        return epochs * max(math.ceil(batches / self.gradient_accumulation_steps), 1)

    def _devices(self) -> int:
        """Return the number of devices that share a step: the processes of torchrun, or the GPUs of a single process."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 or self.on_cpu():
            return processes
        import torch

        return torch.cuda.device_count()
