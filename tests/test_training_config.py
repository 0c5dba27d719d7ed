"""Options of training: defaults hold, and each value outside its range is named with what was expected."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from q8trt.errors import ConfigError
from q8trt.runs.training_config import TrainingConfig

AT_LEAST_ONE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "eval_steps",
    "save_steps", "save_total_limit", "logging_steps", "loss_scale_window",
)  # fmt: skip
ABOVE_ZERO = (
    "num_train_epochs", "learning_rate", "qat_epochs", "qat_learning_rate", "range_learning_rate", "lr_end", "lr_power",
    "adam_epsilon", "distillation_temperature", "loss_scale_value",
)  # fmt: skip
NOT_NEGATIVE = (
    "weight_decay", "max_grad_norm", "label_loss_weight", "distillation_weight", "hidden_loss_weight",
    "attention_loss_weight", "quant_start_step", "dataloader_num_workers", "seed", "warmup_ratio",
)  # fmt: skip
BY_HAND = {"dropout", "qat_dropout", "loss_scale_factor", "max_steps"}


def refused(words: str, **options: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**options)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_defaults() -> None:
    config = TrainingConfig()
    assert config.seed == 42
    assert config.max_steps == -1
    assert config.dropout is None
    assert config.qat_dropout is None
    for option in dataclasses.fields(config):
        assert option.metadata["option"].help, option.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_every_number_has_a_range() -> None:
    """An option that is added is added here too."""
    numbers = {field.name for field in dataclasses.fields(TrainingConfig) if not isinstance(field.default, bool)}
    assert numbers == {*AT_LEAST_ONE, *ABOVE_ZERO, *NOT_NEGATIVE, *BY_HAND}


@pytest.mark.parametrize("name", AT_LEAST_ONE)
def test_one_or_more(name: str) -> None:
    for value in (0, -1):
        refused(f"--{name} {value}, expected 1 or more", **{name: value})
    assert getattr(TrainingConfig(**{name: 1, "do_eval": False}), name) == 1


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_more_than_zero(name: str) -> None:
    for value in (0, -0.5):
        refused(f"--{name} {value}, expected more than 0", **{name: value})
    assert getattr(TrainingConfig(**{name: 1e-12}), name) == 1e-12


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_zero_or_more(name: str) -> None:
    refused(f"--{name} -1, expected 0 or more", **{name: -1})
    assert getattr(TrainingConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", [*ABOVE_ZERO, *NOT_NEGATIVE, "dropout", "qat_dropout"])
def test_not_a_number(name: str) -> None:
    refused(f"--{name} nan, expected", **{name: math.nan})


def test_warmup_ratio() -> None:
    refused("--warmup_ratio 1, expected a share of the steps below 1", warmup_ratio=1)
    assert TrainingConfig(warmup_ratio=0.99).warmup_ratio == 0.99


@pytest.mark.parametrize("value", [-0.1, 1, 1.5])
def test_dropout(value: float) -> None:
    refused(f"--dropout {value}, expected from 0 to below 1", dropout=value)
    refused(f"--qat_dropout {value}, expected from 0 to below 1", qat_dropout=value)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_dropout_in_range(value: float) -> None:
    assert TrainingConfig(dropout=value).dropout == value


@pytest.mark.parametrize("value", [1, 0.5])
def test_loss_scale_factor(value: float) -> None:
    refused(f"--loss_scale_factor {value}, expected more than 1", loss_scale_factor=value)


@pytest.mark.parametrize("value", [0, -2])
def test_max_steps(value: int) -> None:
    refused(f"--max_steps {value}, expected 1 or more, or -1 for whole epochs", max_steps=value)


@pytest.mark.parametrize("value", [-1, 1, 500])
def test_max_steps_in_range(value: int) -> None:
    assert TrainingConfig(max_steps=value).max_steps == value


def test_options_that_exclude_each_other() -> None:
    refused("--fp16 and --bf16 exclude each other; give one", fp16=True, bf16=True)
    assert TrainingConfig(fp16=True).fp16
    assert TrainingConfig(bf16=True).bf16


def test_save_steps_are_a_multiple_of_eval_steps() -> None:
    refused("--save_steps 100 must be a multiple of --eval_steps 40", save_steps=100, eval_steps=40)
    assert TrainingConfig(save_steps=120, eval_steps=40).save_steps == 120
    assert TrainingConfig(save_steps=100, eval_steps=40, do_eval=False).eval_steps == 40


def test_nothing_to_learn() -> None:
    nothing = {"label_loss_weight": 0, "distillation_weight": 0}
    refused(
        "--label_loss_weight, --distillation_weight, --hidden_loss_weight, --attention_loss_weight are all 0", **nothing
    )
    assert TrainingConfig(**nothing, hidden_loss_weight=1).label_loss_weight == 0
    assert TrainingConfig(**nothing, attention_loss_weight=1).label_loss_weight == 0
    assert TrainingConfig(label_loss_weight=0).distillation_weight == 0.5
    assert TrainingConfig(distillation_weight=0).label_loss_weight == 0.5


@pytest.mark.parametrize("name", ["learning_rate", "loss_scale_factor", "max_grad_norm", "dropout"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_must_be_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^--{name} {value}, expected a finite number$"):
        TrainingConfig(**{name: value})


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"^--fp16 needs a CUDA GPU, and there is none; .*--bf16$"):
        TrainingConfig(fp16=True, use_cpu=True).check_machine()
    TrainingConfig(bf16=True, use_cpu=True).check_machine()


@pytest.mark.parametrize("name", ["max_steps", "eval_steps", "per_device_train_batch_size", "quant_start_step"])
def test_largest_whole_number(name: str) -> None:
    refused(f"--{name} {2**31}, expected at most {2**31 - 1}", **{name: 2**31, "do_eval": False})


def test_largest_seed() -> None:
    refused(f"--seed {2**32}, expected at most {2**32 - 1}", seed=2**32)
    assert TrainingConfig(seed=2**32 - 1).seed == 2**32 - 1


def unusable(stage: str, rows: int = 48, **options: Any) -> str:
    """The message of a schedule that `stage` cannot use; the other stage alone can."""
    config = TrainingConfig(use_cpu=True, **options)
    with pytest.raises(ConfigError) as caught:
        config.check_schedule(rows, ("fp32", "int8"))
    config.check_schedule(rows, {"fp32", "int8"} - {stage})
    config.check_schedule(rows, ())
    return str(caught.value)


def test_the_rate_falls_to_its_end() -> None:
    assert unusable("fp32", lr_end=5e-5, qat_learning_rate=1e-4).startswith(
        "--lr_end 5e-05 is not below --learning_rate"
    )
    assert unusable("int8", lr_end=4e-5).startswith("--lr_end 4e-05 is not below --qat_learning_rate 3e-05; lower")


def test_more_steps_than_can_be_counted() -> None:
    message = unusable("fp32", num_train_epochs=1e300)
    assert message.startswith("--num_train_epochs 1e+300 is 3e+300 steps on 48 rows")
    assert unusable("int8", qat_epochs=1e9, per_device_train_batch_size=8).startswith(
        "--qat_epochs 1e+09 is 6e+09 steps"
    )


def test_quantizers_come_on_before_training_ends() -> None:
    assert "QAT has 3 steps, so" in unusable("int8", quant_start_step=3)
    assert "QAT has 2 steps, so" in unusable("int8", quant_start_step=2, gradient_accumulation_steps=2)
    assert "QAT has 7 steps, so" in unusable("int8", quant_start_step=9, max_steps=7)
    TrainingConfig(use_cpu=True, quant_start_step=2).check_schedule(48, ("int8",))


def test_processes_share_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "QAT has 2 steps, so" in unusable("int8", quant_start_step=2)
