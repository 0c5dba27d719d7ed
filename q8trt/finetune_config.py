"""What decides a run of fine-tuning, calibration and QAT: plain data, stored with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from q8trt.data import DataConfig
from q8trt.errors import ConfigError
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.training_config import TrainingConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides a run; stored in run.json, so that `--resume` continues the same run.

    Attributes:
        data: which rows.
        training: how to train.
        model_name_or_path: where training starts.
        from_fp32: a fine-tuned FP32 checkpoint to take in place of the first stage.
        precision: "fp32" stops after the first stage; "int8" goes on.
        distillation: whether a floating-point model teaches the quantized one.
        teacher_model_name_or_path: the teacher, a fine-tuned FP32 checkpoint of the same task and vocabulary; None: the
            run's own FP32 stage.
        qat: False stops after calibration.
        recipe: what to quantize; the recipe itself, not its name, so that a run does not change with the package.
        quantizer: the library whose quantizers and calibrators are used, one of `quantization.libraries.LIBRARIES`.
        calibration_samples: training rows that calibration looks at.
        allow_pickle: read pickled weights (pytorch_model.bin).
        from_pytorch_quantization: a checkpoint of pytorch-quantization to take weights and ranges from in place of
            calibration; its recipe is `recipe`.

    Raises:
        ConfigError: an unknown precision, or no calibration rows.
    """

    data: DataConfig
    training: TrainingConfig
    model_name_or_path: str = "bert-base-uncased"
    from_fp32: str | None = None
    precision: str = "int8"
    distillation: bool = True
    teacher_model_name_or_path: str | None = None
    qat: bool = True
    recipe: Recipe = field(default_factory=lambda: load_recipe("linear"))
    quantizer: str = "modelopt"
    calibration_samples: int = 512
    allow_pickle: bool = False
    from_pytorch_quantization: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "int8"):
            raise ConfigError(f"--precision {self.precision}, expected fp32 or int8")
        if self.calibration_samples < 1:
            raise ConfigError(f"--calibration_samples {self.calibration_samples}, expected 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FinetuneConfig:
        """Read what `to_dict` made.

        Raises:
            ConfigError: written by another version of q8trt, or damaged.
        """
        try:
            lists = {k: tuple(v) for k, v in data["data"].items() if isinstance(v, list)}
            return cls(
                **{
                    **data,
                    "data": DataConfig(**{**data["data"], **lists}),
                    "training": TrainingConfig(**data["training"]),
                    "recipe": Recipe.from_dict(data["recipe"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the run's configuration cannot be read ({error}); start a new run") from None


def last_stage(config: FinetuneConfig) -> str:
    """The stage that ends a run of `config`."""
    return "fp32" if config.precision == "fp32" else "int8" if config.qat else "ptq"
